"""Who looks at jobs. What is published of them is written by a stock sender, which the settings name."""

from __future__ import annotations

import djmease
from jobs.models import Job


@djmease.receiver(type="jobs.look")
def look(client: djmease.Client) -> None:
    """Put a page into the group that hears of everybody's jobs, and tell it how far those are that it may see."""
    client.join("jobs")
    for job in reversed(Job.visible_to(client.user)):
        client.write_message(job.as_dict())
