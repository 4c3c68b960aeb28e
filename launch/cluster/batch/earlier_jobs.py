"""What the earlier jobs of a submission did, as their notes tell."""

from collections.abc import Sequence

from launch.cluster.submission import Note

# Jobs of one submission that may start one after the other without a new checkpoint in between.
FRUITLESS_STARTS = 5


def fruitless(notes: Sequence[Note], saved: int) -> str:
    """Return why no further job is of use; "" where one may be.

    notes: of all jobs so far.
    saved: the step of the newest checkpoint; 0: there is none.
    """
    # One a job: its first start of the ranks, or that it was requeued before that.
    jobs = [note for note in notes if (note.kind, note.attempt) in (("start", 1), ("requeue", 0))]
    latest = jobs[-FRUITLESS_STARTS:]
    if len(latest) < FRUITLESS_STARTS or any((note.step or 0) != saved for note in latest):
        return ""
    said = [note.reason for note in notes if note.kind in ("end", "requeue", "stop")]
    return (
        f"{FRUITLESS_STARTS} jobs one after the other began at step {saved} and saved nothing: not started "
        f"again; see their logs; the last one: {said[-1] if said else 'ended without a word'}"
    )
