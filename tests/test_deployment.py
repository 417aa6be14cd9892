"""The files of docs/deployment/, run as far as one machine can: a browser, nginx, gunicorn, the server, and Valkey."""

from __future__ import annotations

import configparser
import http.client
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from djmease.conf import MeaseConf
from djmease.embedded import EmbeddedValkey
from djmease.management.commands.run_websocket_server import Command
from tests.support import DEADLINE, ROOT, Process, Project, eventually

FILES = ROOT / "docs" / "deployment"
HOST = "shop.example.com"
SETTINGS = """
INSTALLED_APPS = ['django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions', 'djmease', 'app']
MIDDLEWARE = [
    'django.contrib.sessions.middleware.SessionMiddleware',
    'django.middleware.csrf.CsrfViewMiddleware',
    'django.contrib.auth.middleware.AuthenticationMiddleware',
]
TEMPLATES = [{
    'BACKEND': 'django.template.backends.django.DjangoTemplates',
    'DIRS': [r'%(home)s'],
    'APP_DIRS': True,
    'OPTIONS': {'context_processors': ['django.template.context_processors.request']},
}]
STATIC_URL = '/static/'
DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': r'%(home)s/db.sqlite3'}}
DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'
ROOT_URLCONF = 'urls'
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = '/done/'
ALLOWED_HOSTS = ['shop.example.com']
SECURE_PROXY_SSL_HEADER = ('HTTP_X_FORWARDED_PROTO', 'https')
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
MEASE_REDIS_URL = %(redis)r
MEASE_KEY_PREFIX = %(prefix)r
MEASE_PATH = '/ws/'
MEASE_URL = '/ws/'
MEASE_TRUSTED_PROXIES = ['unix']
MEASE_ROUTES = {'news': 'djmease.senders.broadcast'}
MEASE_DRAIN_TIMEOUT = 2
"""
URLS = """
import djmease
import djmease.views
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import path

def page(request):
    return render(request, 'page.html')

def publish(request):
    djmease.publish('news', {'text': request.POST['text']}, user=request.user)
    return HttpResponse('published')

def done(request):
    return HttpResponse(f'{request.user} from {request.build_absolute_uri()}')

urlpatterns = [
    path('', page),
    path('login/', LoginView.as_view(template_name='login.html')),
    path('logout/', LogoutView.as_view()),
    path('publish/', publish),
    path('ticket/', djmease.views.ticket),
    path('done/', done),
]
"""
PAGE = """{% load djmease %}{% mease_script %} <p>{% mease_url %}</p>"""
REGISTRY = """
import djmease

@djmease.opener
def greet(client):
    client.send({'user': str(client.user), 'from': client.request.remote_ip, 'scheme': client.request.protocol})
"""
WSGI = """
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site_settings')
application = get_wsgi_application()
"""
ADD_USER = "from django.contrib.auth.models import User; User.objects.create_user('ada', password='secret')"
MAIN = """
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log;
{user}
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/temp;
    proxy_temp_path {home}/temp;
    fastcgi_temp_path {home}/temp;
    uwsgi_temp_path {home}/temp;
    scgi_temp_path {home}/temp;
    include {home}/{site};
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def nginx_path() -> str | None:
    """Return where nginx is, which for ordinary users is not always on the PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


needs_nginx = pytest.mark.skipif(nginx_path() is None, reason="nginx is not installed (Debian: apt-get install nginx)")
needs_gunicorn = pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed")


def replaced(text: str, replacements: dict[str, str]) -> str:
    """Put something else in the place of what a file names; all of it has to be there."""
    for old, new in replacements.items():
        assert old in text, f"{old!r} is not in the file any more"
        text = text.replace(old, new)
    return text


def unit(name: str) -> configparser.ConfigParser:
    """Return a systemd unit that is in the docs."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((FILES / name).read_text().replace("\\\n", " "))
    return parser


def command_of(name: str) -> list[str]:
    """Return the arguments behind the program that a unit starts."""
    return shlex.split(unit(name)["Service"]["ExecStart"])[1:]


class Deployment:
    """The site ``shop.example.com`` as the files say it, on other sockets and ports."""

    def __init__(self, project: Project, valkey: EmbeddedValkey, prefix: str) -> None:
        self.project = project
        self.home = project.runtime.parent
        self.port, self.plain_port = free_port(), free_port()
        self.web_socket, self.websocket_socket = self.home / "web.sock", self.home / "websocket.sock"
        # As systemd does: it stays open whatever the server does.
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.websocket_socket))
        self.listening.listen(int(unit("shop-websocket.socket")["Socket"]["Backlog"]))
        self.processes: list[Process] = []
        values = {"home": project.home, "redis": f"unix://{valkey.socket}", "prefix": prefix}
        project.settings(SETTINGS % values)
        project.write("urls.py", URLS)
        project.write("shop/wsgi.py", WSGI)
        project.write("page.html", PAGE)
        project.write("login.html", "<form>{% csrf_token %}{{ form.errors }}</form>")
        project.registry(REGISTRY)
        self._certify()

    def _certify(self) -> None:
        self.certificate, self.key = self.home / "site.pem", self.home / "site.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
                *("-out", str(self.certificate), "-keyout", str(self.key)),
            ],
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )
        self.trust = ssl.create_default_context(cafile=str(self.certificate))
        # By TLS 1.3 tickets come behind the handshake: one thread of the client would read them while another writes.
        self.trust.maximum_version = ssl.TLSVersion.TLSv1_2

    def start(self) -> None:
        for arguments in (["migrate", "-v", "0"], ["shell", "-v", "0", "-c", ADD_USER]):
            done = self.project.run(*arguments)
            assert done.code == 0, done.err
        self.server = self.start_server()
        self.start_web()
        self.start_nginx()

    def start_server(self) -> Process:
        *arguments, number = command_of("shop-websocket.service")
        assert (arguments[-1], number) == ("--fd", "3")
        descriptor = self.listening.fileno()
        server = self._start([sys.executable, *arguments, str(descriptor)], pass_fds=[descriptor])
        server.wait_for("Quit with Ctrl-C.")
        return server

    def start_web(self) -> None:
        arguments = [*command_of("shop-web.service"), "--bind", f"unix:{self.web_socket}"]
        self._start([sys.executable, "-m", *_gunicorn(arguments)]).wait_for("Booting worker")

    def start_nginx(self) -> None:
        site = replaced(
            (FILES / "nginx.conf").read_text(),
            {
                "listen 80;": f"listen 127.0.0.1:{self.plain_port};",
                "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
                "/run/shop-web.sock": str(self.web_socket),
                "/run/shop-websocket.sock": str(self.websocket_socket),
                "/etc/letsencrypt/live/shop.example.com/fullchain.pem": str(self.certificate),
                "/etc/letsencrypt/live/shop.example.com/privkey.pem": str(self.key),
                "/var/log/nginx": str(self.home),
            },
        )
        configuration = nginx_configuration(self.home, site)
        self._start([str(nginx_path()), "-e", "stderr", "-c", str(configuration)])
        eventually(lambda: _answers(self.port) and _answers(self.plain_port), "nginx")

    def _start(self, command: list[str], pass_fds: Sequence[int] = ()) -> Process:
        # gunicorn has a socket in there.
        environment = {"DJANGO_SETTINGS_MODULE": "site_settings", "HOME": str(self.home), "XDG_RUNTIME_DIR": ""}
        process = Process(command, self.project.home, environment, pass_fds)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.listening.close()

    def logs(self) -> str:
        """Return all that nginx has written but its errors, which have the whole request."""
        return "".join((self.home / name).read_text() for name in ("access.log", "shop-websocket.log"))


def _gunicorn(arguments: list[str]) -> list[str]:
    assert arguments[0] == "shop.wsgi"
    return ["gunicorn", *arguments]


def nginx_configuration(home: Path, site: str) -> Path:
    """Write a whole configuration around a site's, with all that nginx writes in a directory of the test."""
    (home / "site.conf").write_text(site)
    # Its workers are of another user otherwise, who may not look into the directory of a test that root runs.
    user = "user root;" if os.geteuid() == 0 else ""
    main = home / "nginx.conf"
    main.write_text(MAIN.format(home=home, user=user, site="site.conf"))
    return main


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE).close()
    except OSError:
        return False
    return True


class Browser:
    """What a browser does: TLS to the site's name, cookies, forms with their token, and an Origin."""

    def __init__(self, deployment: Deployment, address: str = "127.0.0.1") -> None:
        self._deployment = deployment
        self._address = address
        self.origin = f"https://{HOST}:{deployment.port}"
        self.cookies: SimpleCookie = SimpleCookie()

    def _connect(self) -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self._deployment.port), timeout=DEADLINE, source_address=(self._address, 0)
        )

    def _cookie(self) -> str:
        return "; ".join(f"{name}={morsel.value}" for name, morsel in self.cookies.items())

    def request(self, method: str, path: str, body: str = "", **headers: str) -> SimpleNamespace:
        connection = http.client.HTTPSConnection(HOST, self._deployment.port, context=self._deployment.trust)
        connection.sock = self._deployment.trust.wrap_socket(self._connect(), server_hostname=HOST)
        if body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body, {"Cookie": self._cookie(), **headers})
        response = connection.getresponse()
        for cookie in response.headers.get_all("Set-Cookie", []):
            self.cookies.load(cookie)
        answer = SimpleNamespace(status=response.status, headers=response.headers, text=response.read().decode())
        connection.close()
        return answer

    def post(self, path: str, **fields: str) -> SimpleNamespace:
        fields["csrfmiddlewaretoken"] = self.cookies["csrftoken"].value
        return self.request("POST", path, urllib.parse.urlencode(fields), Origin=self.origin, Referer=self.origin + "/")

    def log_in(self) -> None:
        assert self.request("GET", "/login/").status == 200
        answer = self.post("/login/", username="ada", password="secret")
        assert (answer.status, answer.headers["Location"]) == (302, "/done/"), answer.text

    def page(self, query: str = "", **options: Any) -> ClientConnection:
        """Open a WebSocket as a page of the site does: where the page says, which both of its tags agree on."""
        html = self.request("GET", "/").text
        path, address = re.search(r'data-mease-url="(.*?)".*<p>(.*?)</p>', html).groups()
        assert urllib.parse.urljoin(self.origin, path) == address.replace("wss:", "https:")
        headers = {"Cookie": self._cookie(), **options.pop("headers", {})}
        return connect(
            address + query,
            sock=self._connect(),
            ssl=self._deployment.trust,
            origin=options.pop("origin", self.origin),
            additional_headers=headers,
            **options,
        )


@pytest.fixture
def deployment(project: Project, redis: str, valkey: EmbeddedValkey) -> Iterator[Deployment]:
    deployment = Deployment(project, valkey, redis.rstrip(":"))
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


def heard(page: ClientConnection) -> Any:
    return json.loads(page.recv(DEADLINE))


def code_of(page: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        page.recv(DEADLINE)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


@needs_nginx
@needs_gunicorn
def test_a_browser_logs_in_hears_what_the_site_publishes_and_comes_back_after_a_restart(
    deployment: Deployment,
) -> None:
    browser = Browser(deployment)
    with browser.page() as stranger:
        assert heard(stranger) == {"user": "AnonymousUser", "from": "127.0.0.1", "scheme": "https"}
        browser.log_in()
        with browser.page() as page:
            assert heard(page)["user"] == "ada"
            # gunicorn's process publishes, Valkey carries it, the server writes it, nginx hands it on.
            assert browser.post("/publish/", text="Hello world !").text == "published"
            assert heard(page) == {"text": "Hello world !"}
            assert page.ping().wait(DEADLINE)

            deployment.server.send_signal(signal.SIGTERM)
            assert code_of(page) == 1012
        assert code_of(stranger) == 1012, "what is published to one user is not sent to others"
    assert deployment.server.wait() == 0

    # Who comes back before the next server is there waits for it.
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(browser.page)
        deployment.start_server()
    with coming.result(DEADLINE) as page:
        assert heard(page)["user"] == "ada"
        assert browser.post("/publish/", text="again").status == 200
        assert heard(page) == {"text": "again"}
        assert browser.post("/logout/").status == 302
        assert code_of(page) == 4401


@needs_nginx
@needs_gunicorn
def test_what_comes_through_nginx_is_what_the_browser_has_sent_and_nothing_else_gets_in(
    deployment: Deployment,
) -> None:
    browser = Browser(deployment)
    answer = browser.request("GET", "/done/")
    assert answer.text == f"AnonymousUser from https://{HOST}:{deployment.port}/done/"

    for options in ({"origin": "https://evil.example"}, {"origin": None, "headers": {"Sec-Fetch-Site": "cross-site"}}):
        with pytest.raises(InvalidStatus) as caught:
            browser.page(**options)
        assert caught.value.response.status_code == 403
    assert browser.request("GET", "/ws/").status == 426
    assert browser.request("GET", "/ws/other").status == 404
    # These are for those who watch the server, and nginx has them look for a page of the site.
    for path in ("/healthz", "/readyz"):
        assert browser.request("GET", path).status == 404

    # What a client says of itself is not believed.
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"}
    # On Linux, the whole of 127.0.0.0/8 is this machine's, so that a browser may have another address than the proxy.
    address = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    with Browser(deployment, address).page(headers=forged) as page:
        assert heard(page) == {"user": "AnonymousUser", "from": address, "scheme": "https"}

    connection = http.client.HTTPConnection("127.0.0.1", deployment.plain_port, timeout=DEADLINE)
    connection.request("GET", "/done/?a=1", headers={"Host": HOST})
    response = connection.getresponse()
    assert (response.status, response.headers["Location"]) == (301, f"https://{HOST}/done/?a=1")
    connection.close()


@needs_nginx
@needs_gunicorn
def test_a_ticket_gets_in_and_is_in_no_log(deployment: Deployment) -> None:
    browser, other = Browser(deployment), Browser(deployment)
    browser.log_in()
    ticket = json.loads(browser.post("/ticket/").text)["ticket"]
    with other.page(f"?ticket={ticket}") as page:
        assert heard(page)["user"] == "ada"
        page.close()
    eventually(lambda: '"GET /ws/" 101 ' in deployment.logs(), "the line of the log")
    assert '"POST /ticket/' in deployment.logs()
    assert ticket not in deployment.logs() + deployment.server.out + deployment.server.err


needs_activation = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed"
)


@needs_activation
def test_the_units_socket_is_taken_over_and_keeps_who_comes_during_a_restart(project: Project) -> None:
    """As the units do: who holds the socket starts the server, which serves it as number 3."""
    project.registry(REGISTRY)
    path = project.runtime.parent / "activated.sock"
    # It hands on what it is told to of its environment: where the package is, and what measures the tests.
    handed_on = [f"--setenv={name}" for name in ("PYTHONPATH", *os.environ) if name.startswith(("PYTHON", "COVERAGE"))]
    program = [sys.executable, *command_of("shop-websocket.service")]
    command = ["systemd-socket-activate", *handed_on, "-l", str(path), *program]
    server = Process(command, project.home, {"DJANGO_SETTINGS_MODULE": "site_settings"})
    try:
        eventually(path.exists, "the socket")
        # It comes before the server, which is only started by it.
        probe = subprocess.run(_probe(path), capture_output=True, text=True, timeout=DEADLINE)
        assert probe.returncode == 0, probe.stderr
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            with connect("ws://127.0.0.1/", sock=sock) as page:
                assert heard(page)["from"] == "0.0.0.0"
                server.send_signal(signal.SIGTERM)
                assert code_of(page) == 1012
        assert server.wait() == 0
    finally:
        server.stop()


def _probe(path: Path) -> list[str]:
    """Return how the unit asks whether the server is ready."""
    command = unit("shop-websocket.service")["Service"]["ExecStartPost"]
    curl, *arguments = shlex.split(replaced(command, {"/run/shop-websocket.sock": str(path)}))
    assert curl == "+/usr/bin/curl"
    return [shutil.which("curl") or pytest.skip("curl is not installed"), *arguments]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    there = {"/srv/shop/.venv/bin/python": sys.executable, "/srv/shop/.venv/bin/gunicorn": sys.executable}
    for file in FILES.glob("shop-*.*"):
        text = file.read_text().replace("/usr/bin/curl", sys.executable)
        for old, new in there.items():
            text = text.replace(old, new)
        (tmp_path / file.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    # It says what it does not know, and passes over it.
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "shop-" in line]
    assert (done.returncode, told) == (0, [])


@needs_nginx
def test_nginx_takes_the_site_of_the_compose_file(tmp_path: Path) -> None:
    content = re.search(r"    content: \|\n((?: {6}.*\n|\n)+)", (FILES / "compose.yaml").read_text())
    assert content is not None
    site = replaced(content[1].replace("$$", "$"), {"listen 80;": f"listen 127.0.0.1:{free_port()};"})
    done = subprocess.run(
        [str(nginx_path()), "-t", "-q", "-e", "stderr", "-c", str(nginx_configuration(tmp_path, site))],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_whoever_stops_a_server_gives_it_time_for_its_drain() -> None:
    drain = 2 * MeaseConf.DRAIN_TIMEOUT
    assert int(unit("shop-websocket.service")["Service"]["TimeoutStopSec"]) > drain
    compose = re.search(r"stop_grace_period: (\d+)s", (FILES / "compose.yaml").read_text())
    kubernetes = (FILES / "kubernetes.yaml").read_text()
    grace, pause = re.search(r"GracePeriodSeconds: (\d+)", kubernetes), re.search(r'\[sleep, "(\d+)"\]', kubernetes)
    assert compose is not None and grace is not None and pause is not None
    assert int(compose[1]) > drain
    assert int(grace[1]) > drain + int(pause[1])
    silence = re.search(r"proxy_read_timeout (\d+)s", (FILES / "nginx.conf").read_text())
    assert silence is not None and int(silence[1]) > MeaseConf.PING_INTERVAL + MeaseConf.PING_TIMEOUT


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_the_containers_command_is_one_and_listens_where_it_is_asked(name: str) -> None:
    text = (FILES / name).read_text()
    found = re.search(r'command: \[python, manage.py, run_websocket_server, "([^"]+)"\]', text)
    assert found is not None
    options = Command().create_parser("manage.py", "run_websocket_server").parse_args([found[1]])
    assert options.address == "0.0.0.0:8001"
    assert "/readyz" in text and "/healthz" in text and text.count("8001") > 1
