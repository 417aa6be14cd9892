"""What a message to one user costs the server among 50 clients, and among 5,000: it is to be found, not looked for.

Run it with  ``python benchmarks/one_user.py``  in an environment that has the ``embedded`` extra.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from site_of_benchmarks import Connections, Server, serving, text_frame

REGISTRY = """
import djmease

@djmease.opener
def enter(client):
    client.write_message("open" * 25)

@djmease.sender(routing="one")
def show(message, clients_list):
    for client in clients_list:
        client.write_message(message)
"""
LOG_IN = """
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.signed_cookies import SessionStore
user = User.objects.create_user("ada")
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.save()
print(session.session_key)
"""
TEXT = "x" * 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--messages", type=int, default=2000, help="messages in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    few, many = (cost(count, options.messages, options.rounds) for count in (options.few, options.many))
    sys.stdout.write("| clients | server CPU µs a message to one | ratio |\n|---|---|---|\n")
    for count, micros in ((options.few, few), (options.many, many)):
        sys.stdout.write(f"| {count} | {micros:.0f} | {micros / few:.2f} |\n")
    return 0


def cost(clients: int, messages: int, rounds: int) -> float:
    """Return the median of the server's CPU microseconds a message to one user, with so many clients."""
    connections = Connections()
    with serving(REGISTRY) as server:
        try:
            connections.open(server.port, clients - 1)
            connections.open(server.port, 1, headers=f"Cookie: sessionid={server.shell(LOG_IN)}\r\n")
            connections.receive(text_frame("open" * 25))
            return statistics.median(round_of(server, connections, messages) for _ in range(rounds))
        finally:
            connections.close()


def round_of(server: Server, connections: Connections, messages: int) -> float:
    before = server.cpu()
    for _ in range(messages):
        server.publish("one", TEXT.encode(), b" user=1")
        connections.receive(text_frame(TEXT), [len(connections.sockets) - 1])
    return (server.cpu() - before) / messages * 1e6


if __name__ == "__main__":
    sys.exit(main())
