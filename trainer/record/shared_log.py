"""Logs that ranks of several machines write: the ledger, and the list of quarantined samples.

    ledger.jsonl                              the first machine's, of the first LEDGER_STEPS steps
    ledger-000010000.jsonl                    its lines of the steps from 10,001 to 20,000
    ledger-000010000.machine-00003.jsonl      those of the fourth machine, in the order of their first ranks

A file has one machine, for only a kernel of its own keeps appends to a file on NFS apart (open(2), O_APPEND).
And a file of the ledger has a fixed range of steps: all ranks begin the next at the same step without a word,
and a resume reads and rewrites the range of its step alone, however long the run is.

files_of(folder, stem)     the files, in the order of their lines
SharedLog                  writes the files of one machine
SharedDigest               what a checkpoint notes of all files
differences(saved, …)      what became of the logs since a checkpoint
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.files import fsync_folder
from trainer.folder.fence import Guard, unfenced
from trainer.record.digest import NOTHING, LogDigest
from trainer.record.sinks import JsonlLog, Known, nothing_known, truncate_after

LEDGER_STEPS = 10_000


class Machine(NamedTuple):
    """A machine among the `total` that a run's ranks are on."""

    number: int = 0
    total: int = 1

    @classmethod
    def of_each(cls, names: Sequence[str]) -> list[Machine]:
        """Return every rank's machine. names: of the machines, in rank order."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return [cls(numbers[name], len(numbers)) for name in names]


ALONE = Machine()


class LogFile(NamedTuple):
    """A file with the lines of steps after `begin` of one machine."""

    begin: int
    machine: int
    path: Path


def file_of(folder: Path, stem: str, begin: int, machine: int) -> Path:
    """Return the path of a file."""
    range_ = f"-{begin:09d}" if begin or machine else ""
    return folder / f"{stem}{range_}{f'.machine-{machine:05d}' if machine else ''}.jsonl"


def files_of(folder: Path, stem: str) -> list[LogFile]:
    """Return the files of a log, in the order of their steps, then of the machines."""
    found = (_parsed(path, stem) for path in folder.glob(f"{stem}*.jsonl"))
    return sorted(file for file in found if file)


def _parsed(path: Path, stem: str) -> LogFile | None:
    name = re.fullmatch(rf"{re.escape(stem)}(?:-(\d{{9,}}))?(?:\.machine-(\d{{5,}}))?\.jsonl", path.name)
    return LogFile(int(name[1] or 0), int(name[2] or 0), path) if name else None


class SharedLog(JsonlLog):
    """The files of one machine, of the log `stem` in a run folder.

    steps: that a file has the lines of.

    A record's step says which file it goes to; from one to the next it only grows, until `close`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        guard: Guard = unfenced,
        *,
        machine: Machine = ALONE,
        steps: int = sys.maxsize,
    ) -> None:
        super().__init__(file_of(folder, stem, 0, machine.number), guard)
        self.name = f"{stem}.jsonl"
        self.folder, self.stem, self.machine, self._steps = folder, stem, machine, steps

    def begin_of(self, step: int) -> int:
        """Return the step after which the file that has the lines of `step` begins."""
        return max(0, step - 1) // self._steps * self._steps

    def write(self, record: Mapping[str, Any]) -> None:
        """See `JsonlLog`. Before the first line of a file, those of the file before are on disk."""
        path = file_of(self.folder, self.stem, self.begin_of(record["step"]), self.machine.number)
        if path != self.path:
            self._leave(path)
        super().write(record)

    def _leave(self, path: Path) -> None:
        """Go on in the file at `path`."""
        with self._lock:
            if self._fd >= 0:
                if self._dirty:
                    os.fsync(self._fd)
                self._gone = self._gone or not self._is_there()
                os.close(self._fd)
                self._fd, self._dirty = -1, False
            self.path = path

    def cut_after(self, step: int, known: Known = nothing_known) -> tuple[int, int]:
        """See `JsonlLog`: the files of all machines. Files of later steps are removed, which takes what a
        process of an earlier start writes into one with it.
        """
        dropped = [(0, 0)]
        for begin, _, path in reversed(files_of(self.folder, self.stem)):
            if begin > self.begin_of(step):
                dropped.append((_lines(path), 0))
                self._guard()
                path.unlink()
                fsync_folder(self.folder)
            elif (known_bytes := known(path)) is not None:
                dropped.append(truncate_after(path, step, self._guard, known_bytes=known_bytes))
        later, torn = zip(*dropped)
        return sum(later), sum(torn)


class SharedDigest:
    """Length and hash of the files of a `SharedLog` that have the lines of a checkpoint's step, of all
    machines; of the files before, which no resume reads, only how many bytes they have together.

    path, lost: as of `LogDigest`.
    """

    def __init__(self, log: SharedLog) -> None:
        self.path = log.folder / log.name
        self.lost = False
        self._log = log
        self._go_to(0)

    def _go_to(self, begin: int) -> None:
        log = self._log
        self._begin = begin
        machines = range(log.machine.total)
        paths = [file_of(log.folder, log.stem, begin, machine) for machine in machines]
        self._files = {path: LogDigest(path) for path in paths}
        self._earlier_bytes = self._size_of_earlier()
        self._earlier_are_whole = False

    def _size_of_earlier(self) -> int:
        """Not of a file that is hashed: an earlier version's, with all steps, is cut at a resume."""
        files = files_of(self._log.folder, self._log.stem)
        earlier = [file.path for file in files if file.begin < self._begin and file.path not in self._files]
        return sum(path.stat().st_size for path in earlier)

    def at(self, step: int) -> dict[str, Any]:
        """Return {earlier_bytes, files: {name: {bytes, xxh3_128}}} of the lines up to `step`."""
        if (begin := self._log.begin_of(step)) != self._begin:
            self._go_to(begin)
        noted = {path.name: digest.at(step) for path, digest in self._files.items()}
        self.lost = any(digest.lost for digest in self._files.values())
        return {
            "earlier_bytes": self._earlier_bytes,
            "files": {name: found for name, found in noted.items() if found["bytes"]},
        }

    def changes(self, noted: Mapping[str, Any], step: int) -> Iterator[str]:
        """As of `LogDigest`. Earlier versions noted {bytes, xxh3_128} of one file with all steps."""
        self._go_to(self._log.begin_of(step))
        self._earlier_are_whole = "files" in noted
        files = noted.get("files", {self.path.name: noted})
        for name in files:
            self._files.setdefault(self._log.folder / name, LogDigest(self._log.folder / name))
        self._earlier_bytes = self._size_of_earlier()
        if (before := noted.get("earlier_bytes", 0)) > self._earlier_bytes:
            yield (
                f"{self.path}: the files of the steps up to {self._begin} were deleted or cut since the "
                f"checkpoint of step {step}, which has {before:,} bytes of them, and {self._earlier_bytes:,} "
                "are there: what is lost is in no other file; the run goes on"
            )
        for name, found in files.items():
            yield from self._files[self._log.folder / name].changes(found, step)

    def known(self, path: Path) -> int | None:
        """The `Known` of this log after `changes`: of files of earlier steps nothing is to be cut."""
        if path in self._files:
            return self._files[path].known_bytes
        file = _parsed(path, self._log.stem)
        return None if self._earlier_are_whole and file and file.begin < self._begin else 0


Digest = LogDigest | SharedDigest


def digest_of(log: JsonlLog) -> Digest:
    """Return what hashes a log for checkpoints."""
    return SharedDigest(log) if isinstance(log, SharedLog) else LogDigest(log.path)


def differences(
    saved: Mapping[str, Mapping[str, Any]], digests: Mapping[str, Digest], step: int
) -> list[str]:
    """Compare the logs with `saved`, {name: what a digest noted}, as the checkpoint of `step` has it. Return
    a sentence for each file whose lines up to there have changed; the `digests` of the others begin with
    them.
    """
    return [how for name, digest in digests.items() for how in digest.changes(saved.get(name, NOTHING), step)]


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
