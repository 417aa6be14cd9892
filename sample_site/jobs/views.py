from __future__ import annotations

from functools import partial

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from jobs.models import Job
from jobs.work import run_in_thread

MAX_RUNNING = 4
SECONDS = 8
STEPS = 40


@require_safe
def jobs(request: HttpRequest) -> HttpResponse:
    return render(request, "jobs/page.html", {"jobs": Job.visible_to(request.user), "seconds": SECONDS})


@require_POST
def start(request: HttpRequest) -> HttpResponse:
    """Start a job for everybody, or for the user alone who asks for it."""
    is_private = "private" in request.POST and request.user.is_authenticated
    if Job.running().count() >= MAX_RUNNING:
        messages.error(request, f"{MAX_RUNNING} jobs run already. Wait for one of them.")
    else:
        owner = request.user if is_private else None
        job = Job.objects.create(name=f"Count {STEPS} herrings", owner=owner, total=STEPS)
        transaction.on_commit(partial(run_in_thread, job, SECONDS))
    return redirect("jobs")
