"""Length and hash of the run's logs at a checkpoint, so that a resume can tell what became of them.

A log grows with the run, so no start parses it whole: what a checkpoint noted is only hashed, and what came
after is read line by line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from trainer.folder.run_folder import EVENTS
from trainer.record.sinks import step_of

READ_BYTES = 4 << 20
TAIL_BYTES = 4 << 10


class LogDigest:
    """The whole lines of one log up to a step, hashed on the way: each call reads only what was appended
    since.

    They are the first ones, for lines come in the order of their steps, whoever writes them: no rank is a
    step ahead of another's line. Of the events, which have no such order, all there are.

    `known_bytes`: how many bytes these lines have. `lost`: whether the last call found that what the one
    before it had read is no longer there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._by_step = path.name != EVENTS
        self._restart()

    def _restart(self) -> None:
        self.known_bytes, self._tail, self._hasher = 0, b"", xxhash.xxh3_128()

    def resume(self, noted: Mapping[str, Any]) -> bool:
        """Begin with the lines that a checkpoint noted, {bytes, xxh3_128}; whether they are still there as
        they were, else with none.
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

    def at(self, step: int) -> dict[str, Any]:
        """{bytes, xxh3_128} of the lines up to `step`; of no bytes where there is no file."""
        try:
            with self.path.open("rb") as file:
                # A file that was cut may have grown since: what ends where the last call ended tells.
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


def differences(
    saved: Mapping[str, Mapping[str, Any]], digests: Mapping[str, LogDigest], step: int
) -> list[str]:
    """What became of the logs since the checkpoint of `step` noted `saved`, {name: {bytes, xxh3_128}}: a
    sentence for each whose lines up to there are not what they were. The `digests` begin with those that are.
    """
    told = []
    for name, digest in digests.items():
        before, path = saved.get(name, NOTHING), digest.path
        if digest.resume(before):
            continue
        how = "was deleted"
        if path.exists():
            how = "was edited" if path.stat().st_size >= before["bytes"] else "was cut or edited"
        told.append(
            f"{path} {how} since the checkpoint of step {step}, which has {before['bytes']:,} bytes of it: "
            "what is lost is in no other file; the run goes on"
        )
    return told


NOTHING = {"bytes": 0, "xxh3_128": xxhash.xxh3_128().hexdigest()}
