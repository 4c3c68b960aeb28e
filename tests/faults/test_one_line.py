"""One failure of several ranks is one line and one event, with nobody above them to choose among theirs."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.lock import FolderLock
from whole_runs import by_hand, environment, events, make_corpus, write_config

slow = pytest.mark.slow
DIVERGES = ("optim.lr=1e38", "optim.clip=0", "optim.schedule=constant", "optim.warmup_steps=0")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    changes: dict[str, Any] = {"train__eval_every": 0, "model__layers": 2, "train__steps": 4}
    corpus = make_corpus(tmp_path, documents=20)
    return write_config(tmp_path, corpus, **changes)


@pytest.fixture
def held(config: Path) -> Iterator[None]:
    """Another process has the run."""
    run = config.with_name("run")
    run.mkdir()
    lock = FolderLock.take(run)
    yield
    lock.release()


def errors_of(said: Sequence[str]) -> list[str]:
    assert "Traceback" not in "".join(said), said
    return [line for line in "".join(said).splitlines() if line.startswith("error: ")]


def refused(config: Path, code: int, *overrides: str, own: Sequence[Mapping[str, str]] = ()) -> str:
    """What two ranks say, who leave with this code: one line."""
    with by_hand(config, *overrides, own=own) as ranks:
        said = [rank.communicate(timeout=150)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code, code], said
    (error,) = errors_of(said)
    return error


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[data.index(b"NUMPY") + 200] ^= 0x04  # in the token ids of the first document
    shard.write_bytes(data)


def test_a_run_that_is_in_use(config: Path, held: None) -> None:
    error = refused(config, 75)
    assert "is in use" in error and "rank" not in error


@pytest.mark.slow
def test_a_corpus_that_one_rank_does_not_find(config: Path, tmp_path: Path) -> None:
    own = [{"CORPUS": str(tmp_path / "corpus" / "train")}, {"CORPUS": "/nowhere"}]
    error = refused(config, 2, "data.sources=[{path: '${oc.env:CORPUS}'}]", own=own)
    assert error.startswith("error: rank 1: ") and "/nowhere" in error


@pytest.mark.parametrize("layout", ["tp", *(pytest.param(axis, marks=slow) for axis in ("pp", "cp", "dp"))])
def test_damage_that_peers_read_too(config: Path, tmp_path: Path, layout: str) -> None:
    (shard,) = (tmp_path / "corpus" / "train").glob("*.tar")
    flip(shard)
    error = refused(config, 1, *([f"parallel.{layout}=2"] if layout != "dp" else []))
    assert shard.name in error and "sample" in error
    (event,) = events(tmp_path / "run", "fault")
    assert shard.name in event["reason"]


@pytest.mark.slow
def test_damage_of_a_held_out_set_that_peers_read_too(config: Path, tmp_path: Path) -> None:
    (shard,) = (tmp_path / "corpus" / "heldout").glob("*.tar")
    flip(shard)
    error = refused(config, 1, "parallel.tp=2")
    assert shard.name in error and "sample" in error
    assert len(events(tmp_path / "run", "fault")) == 1


@slow
def test_damage_of_one_ranks_copy(config: Path, tmp_path: Path) -> None:
    whole = make_corpus(tmp_path / "corpus", documents=20) / "train"
    (shard,) = (tmp_path / "corpus" / "train").glob("*.tar")
    flip(shard)
    own = [{"CORPUS": str(whole)}, {"CORPUS": str(shard.parent)}]
    error = refused(config, 1, "data.sources=[{path: '${oc.env:CORPUS}'}]", "parallel.tp=2", own=own)
    assert error.startswith("error: rank 1: ") and str(shard) in error
    (event,) = events(tmp_path / "run", "fault")
    assert event["rank"] == 1


@slow
def test_a_corpus_that_is_not_there(config: Path) -> None:
    error = refused(config, 2, "data.sources=[{path: /nowhere}]")
    assert "/nowhere" in error and "rank" not in error


@slow
def test_a_layout_that_cannot_be(config: Path) -> None:
    assert "4" in refused(config, 2, "parallel.tp=4")


@slow
def test_a_run_that_diverges(config: Path, tmp_path: Path) -> None:
    assert "not finite" in refused(config, 1, *DIVERGES)
    assert len(events(tmp_path / "run", "fault")) == 1


@slow
def test_ranks_of_torchrun(config: Path, held: None) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node=2", "-m", "trainer", config]
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=150
    )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "is in use" in error
