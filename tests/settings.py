"""Settings of the tests: a site with a database, an admin and nothing of its own."""

from __future__ import annotations

SECRET_KEY = "tests only"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "djmease"]
USE_TZ = True
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {
                        "item.html": '<li id="item">{{ text }} {{ message.text }}</li>',
                        "broken.html": "{% nothing %}",
                    },
                )
            ]
        },
    }
]
