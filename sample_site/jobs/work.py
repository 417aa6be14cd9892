"""Work through a job, in whatever process: `run` is called by the command, and by a thread of the site."""

from __future__ import annotations

import threading
import time

from django.db import connection

import djmease
from jobs.models import Job


def run(job: Job, seconds: float) -> None:
    """Work for about so many seconds, and tell after each step how far it is."""
    tell(job)
    for step in range(job.done + 1, job.total + 1):
        time.sleep(seconds / job.total)  # what takes so long
        job.done = step
        job.save(update_fields=["done", "updated"])
        tell(job)


def tell(job: Job) -> None:
    """Publish how far a job is: to its owner, on whatever page, or to everybody who looks at jobs.

    With `on_commit=False` the bar moves while a transaction is open. The job goes on where Redis is away.
    """
    to = {"group": "jobs"} if job.owner_id is None else {"user": job.owner_id}
    djmease.publish("job.progress", job.as_dict(), on_commit=False, fail_silently=True, **to)


def run_in_thread(job: Job, seconds: float) -> None:
    """Work in a thread, which is enough for a demo: a real site gives jobs to a task queue, that outlives the site."""
    threading.Thread(target=_run_and_disconnect, args=(job, seconds), name=f"job-{job.id}", daemon=True).start()


def _run_and_disconnect(job: Job, seconds: float) -> None:
    try:
        run(job, seconds)
    finally:
        connection.close()
