"""The examples in configs/objectives, made so small that each runs in a second or two, and their corpora."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from data.prepare.embedded import pictures, proteins
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report import datacard
from trainer.config import reading

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "objectives"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
STEPS, BATCH = 8, 8
_PACKAGES = ("asyncio", "email", "unittest")  # of the standard library, with 50 functions and more each


def example(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def corpus_of(name: str) -> str:
    """Return the name of the embedded corpus that an example is trained on."""
    return reading.load(example(name)).data.sources[0].path.split("/")[1]


def small(run: Path, *overrides: str) -> tuple[str, ...]:
    """Return the overrides of a short run in the folder `run`: model, objective and data stay the
    example's.
    """
    return (
        f"run_dir={run}",
        f"train.steps={STEPS}",
        f"train.global_batch={BATCH}",
        "train.micro_batch=4",
        "train.eval_every=4",
        "train.eval_documents=16",
        "train.log_every=1",
        "optim.warmup_steps=2",
        "checkpoint.every=3",
        "checkpoint.keep=10",
        "checkpoint.async=false",  # saved before the next step, so that a kill finds it
        "data.ledger=true",
        *overrides,
    )


def make_small_corpus(name: str, folder: Path) -> None:
    """Make the embedded corpus `name` of a part of its documents in folder/corpora, where the examples look
    for it in the working directory `folder`.
    """
    out = folder / "corpora" / name
    if out.exists():
        return
    library, whole = folder / "library", Path(sysconfig.get_path("stdlib"))
    for package in _PACKAGES:
        if not (library / package).exists():
            shutil.copytree(whole / package, library / package, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda _: str(library))
        patch.setattr(pictures, "_SCRIPTS", ("GREEK", "HEBREW"))
        patch.setattr(pictures, "_MOST_LETTERS", 16)
        patch.setattr(proteins, "_SEQUENCES", 20)
        patch.setattr(datacard, "_draw", lambda *_: [])
        prepare(
            [f"embedded:{name}"],
            out,
            workers=1,
            progress=False,
            recipe=Recipe(shard_bytes=1 << 18, block_documents=32),
        )
