"""Ranks that were not started alike: one line that says how they differ, and exit code 2 on every rank."""

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import trainer
from data.corpus.manifest import file_sha256, read_manifest, write_manifest
from trainer.start.agreement import CODE
from whole_runs import environment, make_corpus, meeting_place, write_config

LAYOUTS = {"tp2": ["parallel.tp=2"], "pp2": ["parallel.pp=2"], "cp2": ["parallel.cp=2"], "dp2": []}
# What is otherwise on rank 1 → what the line says besides.
KINDS = {
    "setting": "optim.lr is 0.002, on rank 0 0.001: start every rank with the same config",
    "environment": "seed is 7, on rank 0 0: start",
    "layout": " is 1, on rank 0 2: start every rank with the same config",
    "corpus": "data.sources[0]: the corpus's fingerprint is",
    "heldout": "data.heldout[0]: the corpus's fingerprint is",
    "tokenizer": "data.sources[0]: the tokenizer's SHA-256 is",
    "code": "the file trainer/loop.py is",
    "torch": "torch is 9.9.9, on rank 0 2.",
    "run_dir": "run_dir is",
}
FAST = [("pp2", "corpus"), ("dp2", "code")]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two corpora of other texts and one tokenizer."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    one, two = (make_corpus(folder, documents=20, seed=seed) for seed, folder in enumerate(folders))
    return one, two


def otherwise(kind: str, folder: Path, corpora: tuple[Path, Path]) -> tuple[list[str], dict[str, str]]:
    """(overrides, environment) of a rank that differs in this."""
    if kind == "setting":
        return ["optim.lr=0.002"], {}
    if kind == "layout":
        return ["parallel.tp=1", "parallel.pp=1", "parallel.cp=1"], {}
    if kind == "environment":
        return [], {"GERMINAL_TEST_SEED": "7"}
    if kind == "run_dir":
        return [f"run_dir={folder / 'elsewhere'}"], {}
    if kind == "corpus":
        return [f"data.sources=[{{path: {corpora[1] / 'train'}}}]"], {}
    if kind == "heldout":
        return [f"data.heldout=[{{path: {corpora[1] / 'heldout'}, name: made_up}}]"], {}
    if kind == "tokenizer":
        copy = shutil.copytree(corpora[0] / "train", folder / "copy")
        file = copy / "tokenizer.json"
        file.write_text(file.read_text() + " ")
        made = read_manifest(copy)
        write_manifest(copy, replace(made, tokenizer=replace(made.tokenizer, sha256=file_sha256(file))))
        return [f"data.sources=[{{path: {copy}}}]"], {}
    tree = folder / "tree"
    if kind == "code":
        for package in CODE:
            here = Path(trainer.__path__[0]).parent / package
            shutil.copytree(here, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
        with (tree / "trainer" / "loop.py").open("a") as source:
            source.write("# changed\n")
    else:
        tree.mkdir()
        (tree / "sitecustomize.py").write_text("import torch\ntorch.__version__ = '9.9.9'\n")
    return [], {"PYTHONPATH": f"{tree}:{environment().get('PYTHONPATH', '')}"}


def check(folder: Path, corpora: tuple[Path, Path], layout: str, kind: str) -> None:
    changes: dict[str, Any] = {"train__steps": 2, "model__layers": 2}
    config = write_config(folder, corpora[0], seed="${oc.decode:${oc.env:GERMINAL_TEST_SEED,0}}", **changes)
    overrides, env = otherwise(kind, folder, corpora)
    ranks, where = [], meeting_place()
    for rank in range(2):
        who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        who |= where | (env if rank else {})
        command = [
            sys.executable,
            "-m",
            "trainer",
            str(config),
            *LAYOUTS[layout],
            *(overrides if rank else ()),
        ]
        ranks.append(
            subprocess.Popen(
                command, env={**environment(), **who}, cwd=folder, stderr=subprocess.PIPE, text=True
            )
        )
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    errors = [line for line in "".join(said).splitlines() if not line.startswith("starting: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: rank 1 does not run what rank 0 runs: "), errors[0]
    assert KINDS[kind] in errors[0] and ", on rank 0 " in errors[0], errors[0]
    assert not (folder / "run" / "config.yaml").exists(), "nothing was begun"


@pytest.mark.parametrize(("layout", "kind"), FAST)
def test_a_difference_is_told_once(
    tmp_path: Path, corpora: tuple[Path, Path], layout: str, kind: str
) -> None:
    check(tmp_path, corpora, layout, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), [pair for pair in product(LAYOUTS, KINDS) if pair not in FAST])
def test_every_difference_on_every_layout(
    tmp_path: Path, corpora: tuple[Path, Path], layout: str, kind: str
) -> None:
    if (layout, kind) != ("dp2", "layout"):  # there tp=1 is nothing else
        check(tmp_path, corpora, layout, kind)
