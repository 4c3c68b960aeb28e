"""A run's watchdog, and what it writes: the file and the event of a hang."""

import contextlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from parallel.world.runtime import Runtime
from trainer.config.run_config import RunConfig
from trainer.folder.fence import Fence
from trainer.record.events import EventLog
from trainer.watch.phases import Bounds, Phases
from trainer.watch.report import Finding, ranges
from trainer.watch.watchdog import Watchdog
from trainer.watch.whereabouts import Standing

REPORT_SECONDS = 10.0  # how long the main thread may take to report a failure, before the watchdog reports


def watchdog(cfg: RunConfig, runtime: Runtime, fence: Fence, phases: Phases) -> Watchdog:
    """Return the watchdog of this rank, which answers other ranks from now on. Make it before the ranks meet
    (`Runtime.join`), and call `begin` afterwards.
    """
    hangs = HangRecord(cfg.folder, fence)
    return Watchdog(
        phases,
        Bounds(cfg.supervise.hang_factor, cfg.supervise.hang_seconds, cfg.supervise.first_seconds),
        runtime.presence,
        write=hangs.write,
        # The main thread may be what hangs, in its own report.
        reporting=lambda: runtime.reporting(seconds=REPORT_SECONDS),
        ended=lambda: runtime.first_departure(0.0) is not None,
        heading=lambda: f"{cfg.name}, start {fence.epoch}, {datetime.now(UTC).isoformat(timespec='seconds')}",
    )


class HangRecord:
    """Writes the file and the event of a hang into the run folder `folder`, if this start may write there
    (`fence`); else the file goes to the system's folder for temporary files.
    """

    def __init__(self, folder: Path, fence: Fence) -> None:
        self._folder, self._fence = folder, fence

    def write(self, text: str, finding: Finding, over: Standing) -> str:
        """Write both; return the path of the file, and why there is no event where that failed.

        The file is named after the start, which has one hang at most: of several ranks that report, one makes
        it. FileExistsError on the others.
        """
        try:
            self._fence.check()
        except RuntimeError:  # the folder is not this start's yet, or is a later one's
            return self._write_elsewhere(text)
        path = self._folder / "faults" / f"hang-start-{self._fence.epoch:05d}.txt"
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            self._write_event(finding, over, str(path.relative_to(self._folder)))
        except (OSError, RuntimeError) as error:
            return f"{path} (events.jsonl has no event: {error})"
        return str(path)

    def _write_event(self, finding: Finding, over: Standing, file: str) -> None:
        log = EventLog(self._folder / "events.jsonl", self._fence.check, shown=False)
        with contextlib.closing(log) as events:
            events.event(
                "hang",
                over.step,
                f"{finding.lines[0].removeprefix('hang: ')}; {finding.lines[1]}",
                rank=next(iter(finding.ranks), None),
                host=next(iter(finding.hosts), ""),
                ranks=ranges(finding.ranks),
                phase=over.phase,
                seconds=over.seconds,
                file=file,
            )

    def _write_elsewhere(self, text: str) -> str:
        descriptor, path = tempfile.mkstemp(prefix="germinal-hang-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return path
