"""Runs whose ledger has many files: killed, gone back, on other machines; every sequence is there once."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from ranks import RankContext, RankPools
from trainer.record.shared_log import files_of
from whole_runs import consumed, environment, events, lines_of, make_corpus, train_here, write_config

KILLER = Path(__file__).parents[2] / "helpers/programs/killer.py"
STEPS, BATCH, RANGE = 12, 8, 3  # saves come every four steps
RANGED = f"""
import runpy, sys
from trainer.metrics import meter
meter.LEDGER_STEPS = {RANGE}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def ranged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.metrics.meter.LEDGER_STEPS", RANGE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def config_of(folder: Path, corpus: Path) -> Path:
    return write_config(folder, corpus, model__layers=1, train__eval_every=0, checkpoint__async=False)


def in_order(run: Path) -> None:
    """Every step once in the ledger, in order, and each file with its own."""
    assert [line["step"] for line in lines_of(run, "ledger")] == list(range(1, STEPS + 1))
    assert consumed(run) == list(range(STEPS * BATCH))
    assert [(file.begin, file.machine) for file in files_of(run, "ledger")] == [(n, 0) for n in (0, 3, 6, 9)]


# A file begins with the lines of steps 4, 7 and 10, and the file before is forced to disk then; a save of one
# rank forces five files to disk and renames one.
@pytest.mark.parametrize(
    ("where", "count", "resumed"),
    [
        ("fsync", 1, 0),  # the file after step 3 is to begin
        ("step", 8, 4),  # the file after step 6 has begun, step 8 is not saved
        pytest.param("rename", 1, 0, marks=pytest.mark.slow),  # the first commit
        pytest.param("step", 5, 4, marks=pytest.mark.slow),  # saved, and its file goes on
        pytest.param("step", 7, 4, marks=pytest.mark.slow),
        pytest.param("step", 11, 8, marks=pytest.mark.slow),
    ],
)
def test_killed_between_the_begin_of_a_file_and_a_commit(
    where: str, count: int, resumed: int, corpus: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, corpus)
    command = [sys.executable, "-c", RANGED, str(KILLER), where, str(count), str(config)]
    killed = subprocess.run(command, env=environment(), capture_output=True, timeout=180)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert train_here(config)
    in_order(tmp_path / "run")
    assert [event["step"] for event in events(tmp_path / "run", "start")] == [0, resumed]
    assert not [one for one in events(tmp_path / "run", "fault") if "ledger" in one["reason"]]


def test_a_run_that_goes_back_writes_the_later_files_anew(corpus: Path, tmp_path: Path) -> None:
    config, run = config_of(tmp_path, corpus), tmp_path / "run"
    assert train_here(config)
    before = {file.path: file.path.read_bytes() for file in files_of(run, "ledger")}
    inodes = {path: path.stat().st_ino for path in before}
    for step in (8, 12):
        shutil.rmtree(run / f"checkpoints/step-{step:09d}")
    assert train_here(config)
    in_order(run)
    assert {path: path.read_bytes() for path in before} == before
    assert (run / "ledger.jsonl").stat().st_ino == inodes[run / "ledger.jsonl"], "left as it was"
    (told,) = [one for one in events(run, "rewind") if "ledger" in one["reason"]]
    assert told["reason"] == "ledger.jsonl: dropped 8 lines of later steps"


def run_on_machines(context: RankContext, config: Path, machines: list[str], overrides: list[str]) -> None:
    """Train as a rank on one of some machines."""
    from parallel.world.runtime import Runtime
    from trainer.config import reading
    from trainer.run import assemble

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("trainer.metrics.meter.LEDGER_STEPS", RANGE)
        patch.setattr("trainer.metrics.meter.network", lambda: machines[context.rank])
        runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
        assert assemble(reading.load(config, overrides), runtime, stack)()


def test_each_machine_has_files_of_its_own_and_a_start_on_others_goes_on(
    corpus: Path, tmp_path: Path, ranks: RankPools
) -> None:
    config, run = config_of(tmp_path, corpus), tmp_path / "run"
    first = ["train.steps=7", "train.micro_batch=1"]
    ranks(4).run(run_on_machines, config, ["a", "b", "b", "c"], first)
    writers = {
        file.path.name: {json.loads(line)["dp_rank"] for line in file.path.read_text().splitlines()}
        for file in files_of(run, "ledger")
        if file.begin == 3
    }
    assert writers == {
        "ledger-000000003.jsonl": {0},
        "ledger-000000003.machine-00001.jsonl": {1, 2},
        "ledger-000000003.machine-00002.jsonl": {3},
    }
    assert consumed(run) == list(range(7 * BATCH))
    shutil.rmtree(run / "checkpoints/step-000000007")  # killed before its last save
    assert train_here(config)
    assert consumed(run) == list(range(STEPS * BATCH))
    assert sorted({line["step"] for line in lines_of(run, "ledger")}) == list(range(1, STEPS + 1))
    assert not [one for one in events(run, "fault") if "ledger" in one["reason"]]
