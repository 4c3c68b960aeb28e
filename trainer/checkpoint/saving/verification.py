"""Committed checkpoints read again, to be sure of them before older ones are deleted.

All ranks share the reading, in a thread of each, and no rank reads what it wrote itself where there is
another. Rank 0 names the steps with its verdict on a save; the results come back as notes. No save and no
step waits for them: while they are under way, the next save asks for no more.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from trainer.checkpoint import folder as folders
from trainer.checkpoint.pieces.files import is_away
from trainer.checkpoint.saving.attempt import POLL_SECONDS, longest_pause
from trainer.checkpoint.saving.board import Board, post_again
from trainer.checkpoint.saving.retention import Retention
from trainer.ranks import one_line


class Verification:
    """The verifications of one run on this rank, one at a time.

    root: the run's folder of checkpoints.
    rank, world: this rank among those that read.
    board: the ranks' notes.
    retention: rank 0's, which learns the results and deletes.
    patience: seconds that rank 0 waits for the others.
    gone: returns the first rank that has ended without the others, if there is one.
    """

    def __init__(
        self,
        root: Path,
        *,
        rank: int,
        world: int,
        board: Board,
        retention: Retention,
        patience: float,
        gone: Callable[[], object],
    ) -> None:
        self._root, self._rank, self._world = root, rank, world
        self._board, self._retention = board, retention
        self._patience_seconds, self._gone = patience, gone
        self._thread: threading.Thread | None = None
        self._steps: list[int] = []  # that the thread was given

    def due(self, *, after_others: bool = False) -> list[int]:
        """Rank 0: the steps to verify now; none while others are being verified, unless `after_others`: then
        the rest, to be verified once those are done.
        """
        if not self._is_under_way():
            return self._unverified()
        return [step for step in self._unverified() if step not in self._steps] if after_others else []

    def begin(self, save: str, steps: Sequence[int], *, deletes: bool) -> None:
        """Verify this rank's share of `steps` in the background, after what is under way; rank 0 then deletes
        what need not stay.

        save: a name of the save that named the steps, the same on all ranks.
        deletes: rank 0: whether anything may be deleted now.
        """
        if not steps and (self._rank or self._is_under_way()):
            return
        # Not awaited here: a save that lasts as long as reading another checkpoint is taken for a hang.
        given = (self._thread, save, list(steps), deletes)
        self._thread = threading.Thread(target=self._verify, args=given, name="verification", daemon=True)
        self._steps = list(steps)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being verified."""
        if self._thread is not None:
            self._thread.join()

    def _verify(self, before: threading.Thread | None, save: str, steps: list[int], deletes: bool) -> None:
        if before is not None:
            before.join()
        while steps:
            stamps = {step: self._stamp(step) for step in steps} if self._rank == 0 else {}
            found = {step: self._damage(step) for step in steps}
            if self._rank:
                note = orjson.dumps({str(step): reason for step, reason in found.items()})
                with contextlib.suppress(
                    OSError, RuntimeError
                ):  # then rank 0 does not learn it, and asks again
                    post_again(self._board, _key(save, self._rank), note)
                return
            whole = self._gathered(save, found)
            if whole is None:
                return
            for step, reason in whole.items():
                if reason is not None:
                    self._retention.note(step, stamps[step], reason)
            # Of several ranks, the next save asks for the rest.
            steps = self._unverified() if self._world == 1 and any(whole.values()) else []
        if self._rank == 0 and deletes:
            self._retention.apply()

    def _is_under_way(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _unverified(self) -> list[int]:
        try:
            return self._retention.unverified()
        except OSError:  # one of them is being moved away; the next save asks again
            return []

    def _stamp(self, step: int) -> str:
        try:
            return self._retention.stamp(step)
        except OSError:
            return ""

    def _damage(self, step: int) -> str | None:
        """What is wrong with this rank's share of a checkpoint; "" where nothing is, None where the file
        server did not say: a later save asks again.
        """
        at = folders.step_folder(self._root, step)
        try:
            manifest = folders.manifest_of(at)
            mine = manifest.files.share_of(self._rank, self._world, shift=self._world // 2)
            with ThreadPoolExecutor(folders.READERS) as pool:  # read(2) and xxhash let go of the lock
                for _ in pool.map(lambda name: folders.check_file(at, name, manifest.files[name]), mine):
                    pass
        except Exception as error:  # whatever it is, rank 0 waits for this rank's word
            return None if is_away(error) else one_line(error)
        return ""

    def _gathered(self, save: str, own: dict[int, str | None]) -> dict[int, str | None] | None:
        """Rank 0: step → what is wrong with it, by all ranks, as `_damage` has it; None where a rank does not
        answer.
        """
        keys = [_key(save, rank) for rank in range(1, self._world)]
        deadline, pause = time.monotonic() + self._patience_seconds, POLL_SECONDS[0]
        try:
            while keys and self._board.missing(keys):
                if self._gone() is not None or time.monotonic() > deadline:
                    return None
                time.sleep(pause)
                pause = min(longest_pause(self._world), pause * 1.5)
            for key in keys:
                if not (note := self._board.read(key)):  # gone, or empty: that is no word that all is well
                    return None
                said = orjson.loads(note)
                own = {step: _of_both(reason, said[str(step)]) for step, reason in own.items()}
            self._board.drop(keys)
        except (OSError, RuntimeError):
            return None
        return own


def _of_both(one: str | None, other: str | None) -> str | None:
    """Damage that one of two ranks found is damage; else it is unknown where one of them does not know."""
    return one or other or (None if None in (one, other) else "")


def _key(save: str, rank: int) -> str:
    return f"{save}-verified-{rank:05d}"
