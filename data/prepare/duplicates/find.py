"""Find the duplicates of the whole corpus, step by step; each step is a set of tasks, one for each share.

    same    send → reduce → mark                       exact duplicates
    near    send → reduce → pair                       pairs, and of what they connect the first: connected.py
            (send → reduce → large → send → reduce → small) until nothing changes
    decide                                             verdicts

The result depends on the order of the documents and on nothing else: of equal documents the first stays; of
documents that are connected by pairs of similar ones, too. This process holds a number for each share.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from common.files import write_atomically
from data.prepare.cleaning.dedup import bands
from data.prepare.duplicates import connected, exchange, near, same, verdicts
from data.prepare.duplicates.shares import Share, folder, write_begins
from data.prepare.preparation import Preparation, write_json
from data.prepare.units import Run, TaskFunction, Unit

# Keys that a share exchanges at most: a task then holds some 100 MB. A small corpus is cut into more shares,
# so that many workers have some to do.
_KEYS_AT_ONCE = 1 << 21
_LEAST_DOCUMENTS, _SHARES = 1 << 14, 32


def find(preparation: Preparation, units: list[Unit], run: Run) -> None:
    """Decide which documents of the corpus are left out as duplicates, unless a killed attempt has.

    preparation: the preparation; the surveys of all units are there.
    units: all units, in order.
    run: calls a function for every task, somewhere.
    """
    if not preparation.recipe.deduplicate or verdicts.are_stored(preparation):
        return
    folder(preparation).mkdir(exist_ok=True)
    counts = [json.loads(preparation.record(unit, "survey").read_bytes())["documents"] for unit in units]
    write_begins(preparation, counts)
    steps = _Steps(preparation, run, Share(0, _share_size(preparation, sum(counts)), sum(counts)))
    steps.exchanged("same-sent", same.send)
    steps.run("same", same.mark, sent="same-sent")
    steps.remove("same-sent")
    later = ""
    if preparation.recipe.deduplicate == "near":
        steps.exchanged("near-sent", near.send)
        steps.run("pairs-0", near.pair, sent="near-sent")
        steps.remove("near-sent")
        later = _connected(steps)
    steps.run(verdicts.STEP, verdicts.decide, pairs=later)
    verdicts.store(preparation, steps.shares(verdicts.STEP))
    steps.remove("same", "later")


def _connected(steps: "_Steps") -> str:
    """Make stars of the pairs; return the step that has the documents which are the first of none."""
    at, still = 0, 0  # the pairs are in the folder pairs-AT; so many steps in a row have changed none
    while still < 2:
        is_large = at % 2 == 0
        pairs, sent = f"pairs-{at}", f"sent-{at}"
        steps.exchanged(sent, connected.send_large if is_large else connected.send_small, pairs=pairs)
        at += 1
        change = connected.large if is_large else connected.small
        steps.run(f"pairs-{at}", change, sent=sent, pairs=pairs)
        still = 0 if steps.changed(f"pairs-{at}") else still + 1
        steps.remove(sent, pairs)
    steps.run("later", connected.send_later, pairs=f"pairs-{at}")
    steps.remove(f"pairs-{at}")
    return "later"


class _Steps:
    """Runs the steps that are not done yet. Each has a folder, and a file NAME.done beside it at its end."""

    def __init__(self, preparation: Preparation, run: Run, share: Share) -> None:
        self.preparation = preparation
        self.folder = folder(preparation)
        self._engine_run = run
        self._share = share

    def shares(self, step: str, **reads: Any) -> Iterator[Share]:
        """The tasks of a step."""
        for number in range(self._share.count):
            yield replace(self._share, number=number, step=step, **reads)

    def run(self, step: str, function: TaskFunction, **reads: str) -> None:
        """Run the tasks of a step. `reads`: the steps whose files they read, as fields of `Share`."""
        self._run_once(f"{step}.done", step, function, reads)

    def exchanged(self, step: str, function: TaskFunction, **reads: str) -> None:
        """Run the tasks of a step that sends keys, and then find the least value of each key."""
        self._run_once(f"{step}.sent", step, function, reads)
        self._run_once(f"{step}.done", step, exchange.reduce, {})

    def _run_once(self, done: str, step: str, function: TaskFunction, reads: dict[str, str]) -> None:
        if not (self.folder / done).exists():
            (self.folder / step).mkdir(exist_ok=True)
            self._engine_run(function, self.preparation, list(self.shares(step, **reads)), _not_shown)
            write_atomically(self.folder / done, b"")

    def changed(self, step: str) -> bool:
        """Has a step changed any pair? Kept in a file, since the step's own are removed."""
        path = self.folder / f"{step}.changed"
        if not path.exists():
            write_json(path, connected.changed(self.preparation, self.shares(step)))
        return bool(json.loads(path.read_bytes()))

    def remove(self, *steps: str) -> None:
        """Remove the files of steps that no other one reads; that they are done stays known."""
        for step in steps:
            shutil.rmtree(self.folder / step, ignore_errors=True)


def _not_shown(size_bytes: int) -> None:
    """No progress is shown: the steps take a small part of the time that cleaning takes."""


def _share_size(preparation: Preparation, total: int) -> int:
    """Documents in a share: a function of the corpus and the recipe alone."""
    keys = bands(preparation.recipe.near_threshold)[0] if preparation.recipe.deduplicate == "near" else 1
    return max(1, min(_KEYS_AT_ONCE // keys, max(_LEAST_DOCUMENTS, total // _SHARES)))
