"""How long a start took, part by part."""

from trainer.record.events import EventLog
from trainer.watch.phases import Phases


def record_start(events: EventLog, step: int, phases: Phases) -> None:
    """Record the seconds that each part of rank 0's start took, up to its first step."""
    seconds = {what: round(took, 3) for what, took in phases.main.start_seconds.items()}
    reason = f"the first step began {sum(seconds.values()):.1f} s after the start"
    events.event("started", step, reason, seconds=seconds)
