"""Settings of the sample site. What belongs to django-mease is at the end."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = True
SECRET_KEY = "for the demo only: a real site keeps its own key secret"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "config",
    "examples",
    "chat",
    "announcements",
    "jobs",
    "questions",
    "djmease",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "examples.context_processors.examples",
            ],
        },
    },
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

# The site and the WebSocket server are two processes that write to one file: in WAL mode neither waits for the
# other's reads, and a transaction that asks for the lock when it begins cannot fail when it comes to write.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SAMPLE_SITE_DATABASE", BASE_DIR / "db.sqlite3"),
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE"},
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "start"

SAMPLE_SITE_PORT = int(os.environ.get("SAMPLE_SITE_PORT", 8000))

# django-mease

MEASE_PORT = int(os.environ.get("SAMPLE_SITE_WEBSOCKET_PORT", 8001))
MEASE_REDIS_URL = os.environ.get("SAMPLE_SITE_REDIS_URL")  # without one, and while DEBUG is on, the embedded Valkey
MEASE_EMBEDDED_DIR = os.environ.get("SAMPLE_SITE_EMBEDDED_DIR")

# Nobody types faster; what sends more is closed.
MEASE_MAX_MESSAGE_RATE = 5
MEASE_MAX_MESSAGE_BURST = 50

# The groups of which is known who is in them. Their pages are told who comes and goes.
MEASE_PRESENCE = ["room.*"]

# What is published, and who writes it to the pages: all but the chat's messages, whose sender a decorator registers.
MEASE_ROUTES = {
    "board": "djmease.senders.broadcast",
    "chat.whisper": "djmease.senders.broadcast",
    "job.progress": "djmease.senders.broadcast",
    "questions": {"SENDERS": "djmease.senders.render", "TEMPLATE": "questions/list.html"},
    "scores": "djmease.senders.broadcast",
}

# What pages send, and who hears it: by its "type". A score is published as it comes, for whoever has logged in.
MEASE_RECEIVERS = [
    {"RECEIVER": "announcements.live.look", "TYPE": "board.look"},
    {"RECEIVER": "djmease.receivers.publish", "TYPE": "score", "ROUTING": "scores"},
]

# The groups that pages join by themselves, with live.group('board').
MEASE_GROUPS = {"board": True}
