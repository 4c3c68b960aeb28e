"""Length and hash of the run's logs at a checkpoint, so that a resume notices when a log was changed.

A log grows with the run, so no start parses it whole: what a checkpoint noted is only hashed, and what came
after is read line by line.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from trainer.folder.run_folder import EVENTS
from trainer.record.sinks import step_of

NOTHING = {"bytes": 0, "xxh3_128": xxhash.xxh3_128().hexdigest()}
READ_BYTES = 4 << 20
TAIL_BYTES = 4 << 10


class LogDigest:
    """Hashes the whole lines of one log up to a step: each call reads only what was appended since the last.

    These lines are the first ones of the file, for lines come in the order of their steps, whichever rank
    writes them: no rank is a step ahead of another's line. Events have no such order: all of them are hashed.

    known_bytes: how many bytes these lines have.
    lost: whether the last call found that lines which the call before it had read are no longer there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._by_step = path.name != EVENTS
        self._restart()

    def _restart(self) -> None:
        self.known_bytes, self._tail, self._hasher = 0, b"", xxhash.xxh3_128()

    def resume(self, noted: Mapping[str, Any]) -> bool:
        """Begin with the lines that a checkpoint noted, {bytes, xxh3_128}. Return whether they are unchanged;
        if not, begin with none.
        """
        self._restart()
        buffer = memoryview(bytearray(READ_BYTES))
        left = noted["bytes"]
        try:
            with self.path.open("rb", buffering=0) as file:
                while left and (read := file.readinto(buffer[:left])):
                    self._hasher.update(buffer[:read])
                    self._tail = bytes(buffer[max(0, read - TAIL_BYTES) : read])
                    left -= read
        except FileNotFoundError:
            pass
        if left or self._hasher.hexdigest() != noted["xxh3_128"]:
            self._restart()
            return False
        self.known_bytes = noted["bytes"]
        return True

    def changes(self, noted: Mapping[str, Any], step: int) -> Iterator[str]:
        """As `resume`, of what the checkpoint of `step` noted; yield a sentence where the lines changed."""
        if self.resume(noted):
            return
        how = "was deleted"
        if self.path.exists():
            how = "was edited" if self.path.stat().st_size >= noted["bytes"] else "was cut or edited"
        yield (
            f"{self.path} {how} since the checkpoint of step {step}, which has {noted['bytes']:,} bytes of "
            "it: what is lost is in no other file; the run goes on"
        )

    def known(self, path: Path) -> int | None:
        """The `Known` of this log after `changes`."""
        return self.known_bytes

    def at(self, step: int) -> dict[str, Any]:
        """Return {bytes, xxh3_128} of the lines up to `step`; 0 bytes where there is no file."""
        try:
            with self.path.open("rb") as file:
                # A file that was cut may have grown since: compare the bytes before where the last call
                # ended.
                file.seek(self.known_bytes - len(self._tail))
                self.lost = file.read(len(self._tail)) != self._tail
                if self.lost:
                    self._restart()
                    file.seek(0)
                for line in file:
                    at = step_of(line)
                    if at is None or (self._by_step and at > step):
                        break
                    self._hasher.update(line)
                    self.known_bytes += len(line)
                    self._tail = line
        except FileNotFoundError:
            self.lost = self.known_bytes > 0
            self._restart()
        return {"bytes": self.known_bytes, "xxh3_128": self._hasher.hexdigest()}
