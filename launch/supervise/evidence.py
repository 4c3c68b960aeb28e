"""What a run folder tells of an attempt: how far it came, and what the ranks wrote down about its end."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.supervise.policy import Attempt
from trainer.checkpoint import folder as checkpoints
from trainer.folder.run_folder import EVENTS
from trainer.record.events import read_events
from trainer.record.sinks import last_step


@dataclass(frozen=True)
class Before:
    """A run folder before an attempt. The folder may not exist yet.

    folder: the run folder.
    saved: the step of the newest committed checkpoint; 0: there is none.
    events_bytes: the length of events.jsonl.
    """

    folder: Path
    saved: int
    events_bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Before":
        try:
            size = (folder / EVENTS).stat().st_size
        except OSError:
            size = 0
        return cls(folder, newest_saved(folder), size)

    def attempt(
        self,
        code: int,
        *,
        asked_to_stop: bool = False,
        under_way: bool | None = None,
        rank: int | None = None,
        host: str = "",
        host_lost: bool = False,
    ) -> Attempt:
        """Describe the attempt that has ended since.

        rank, host: the first rank to fail and its machine, where the supervisor knows them; else, and where
            a rank hung, they are taken from the ranks' own events.
        under_way: whether the first step was done; None: as metrics.jsonl tells, which may miss steps where
            train.log_every is not 1.
        """
        events = self._events()
        hangs = [event for event in events if event["kind"] == "hang"] if code else []
        told = hangs or [event for event in events if event["kind"] == "fault" and code > 0 and rank is None]
        if told:
            found = told[-1]  # the nearest to the end
            rank = found["rank"] if isinstance(found.get("rank"), int) else rank
            host = str(found.get("host") or host)
        if under_way is None:
            started = any(event["kind"] == "start" for event in events)
            under_way = started and last_step(self.folder) > self.saved
        return Attempt(
            code=code,
            step=last_step(self.folder) if under_way else self.saved,
            saved_before=self.saved,
            saved_after=newest_saved(self.folder),
            asked_to_stop=asked_to_stop,
            under_way=under_way,
            repeats=any(event.get("repeats") is True for event in events),
            hung=bool(hangs),
            host_lost=host_lost,
            rank=rank,
            host=host,
        )

    def _events(self) -> list[dict[str, Any]]:
        path = self.folder / EVENTS
        with contextlib.suppress(OSError):
            is_another = path.stat().st_size < self.events_bytes  # replaced by a shorter file
            return list(read_events(path, 0 if is_another else self.events_bytes))
        return []


def newest_saved(folder: Path) -> int:
    """Return the step of the newest committed checkpoint in a run folder; 0 where there is none."""
    try:
        return next(iter(checkpoints.steps(folder / "checkpoints")), 0)
    except OSError:
        return 0
