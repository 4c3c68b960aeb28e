"""Length and hash of the run's logs at a checkpoint, so that a resume can tell what became of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from trainer.metrics.sinks import step_of
from trainer.run_folder import EVENTS


class LogDigest:
    """The whole lines of one log up to a step, hashed on the way: each call reads only what was appended
    since.

    They are the first ones, for lines come in the order of their steps, whoever writes them: no rank is a
    step ahead of another's line. Of the events, which have no such order, all there are.

    `lost`: whether the last call found that what the one before it had read is no longer there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._by_step = path.name != EVENTS
        self._restart()

    def _restart(self) -> None:
        self._bytes, self._last, self._hasher = 0, b"", xxhash.xxh3_128()

    def at(self, step: int, *, most_bytes: int | None = None) -> dict[str, Any]:
        """{bytes, xxh3_128} of the lines up to `step`, and inside the first `most_bytes`; of no bytes where
        there is no file.
        """
        try:
            with self.path.open("rb") as file:
                # A file that was cut may have grown since: what ends where the last call ended tells.
                file.seek(self._bytes - len(self._last))
                self.lost = file.read(len(self._last)) != self._last
                if self.lost:
                    self._restart()
                    file.seek(0)
                for line in file:
                    at = step_of(line)
                    if at is None or (self._by_step and at > step):
                        break
                    if most_bytes is not None and self._bytes + len(line) > most_bytes:
                        break
                    self._hasher.update(line)
                    self._bytes += len(line)
                    self._last = line
        except FileNotFoundError:
            self.lost = self._bytes > 0
            self._restart()
        return {"bytes": self._bytes, "xxh3_128": self._hasher.hexdigest()}


def differences(saved: Mapping[str, Mapping[str, Any]], folder: Path, step: int) -> list[str]:
    """What became of the logs in `folder` since the checkpoint of `step` noted `saved`, {name: {bytes,
    xxh3_128}}: a sentence for each whose lines up to there are not what they were.
    """
    told = []
    for name, before in saved.items():
        path = folder / name
        now = LogDigest(path).at(step, most_bytes=before["bytes"])
        if now == before:
            continue
        how = "was edited" if now["bytes"] == before["bytes"] else "was cut or edited"
        if not path.exists():
            how = "was deleted"
        told.append(
            f"{path} {how} since the checkpoint of step {step}, which has {before['bytes']:,} bytes of it: "
            "what is lost is in no other file; the run goes on"
        )
    return told
