"""Ranks that are killed under `germinal train`: the same command goes on by itself, and nobody can tell."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from supervised import children
from whole_runs import (
    GERMINAL,
    environment,
    events,
    make_corpus,
    records,
    tensors,
    train,
    whole_steps,
    write_config,
)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_killed_ranks_are_started_again_and_the_run_is_bit_identical(nproc: int, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    reference, run = tmp_path / "reference", tmp_path / "run"
    config = write_config(tmp_path, corpus, train__steps=30, checkpoint__every=3, train__eval_every=5)
    train(config, f"run_dir={reference}", nproc=nproc)
    command = [GERMINAL, "train", str(config), "--nproc", str(nproc)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        for kill, step in enumerate((5, 14)):
            while whole_steps(run / "metrics.jsonl") < step or len(events(run, "start")) <= kill:
                assert process.poll() is None
                time.sleep(0.002)
            os.kill(children(process.pid)[-1], signal.SIGKILL)
        said = process.communicate(timeout=400)[1]
    assert process.returncode == 0, said[-2000:]
    assert said.count("was ended by SIGKILL at step ") == said.count("(restart 1 of 3)") == 2, said
    restarts = events(run, "restart")
    assert [(event["rank"], event["code"]) for event in restarts] == [(nproc - 1, -9)] * 2
    assert records(run / "metrics.jsonl") == records(reference / "metrics.jsonl")
    ledgers = [records(folder / "ledger.jsonl") for folder in (run, reference)]
    for ledger in ledgers:  # the data ranks write in any order
        ledger.sort(key=lambda line: (line["step"], line["dp_rank"]))
    assert ledgers[0] == ledgers[1]
    mine, theirs = tensors(run), tensors(reference)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    heads = (run / "logs" / f"rank-{nproc - 1:05d}.log").read_text().splitlines()
    assert sum(line.startswith("=== ") for line in heads) == 3


@pytest.mark.slow
def test_a_failure_that_must_repeat_is_not_started_again(tmp_path: Path) -> None:
    """The corpus is damaged while the run reads it."""
    corpus = make_corpus(tmp_path, documents=200)
    config = write_config(tmp_path, corpus, train__steps=4000, checkpoint__every=2, train__eval_every=0)
    run = tmp_path / "run"
    command = [GERMINAL, "train", str(config), "data.on_corrupt=stop"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while whole_steps(run / "metrics.jsonl") < 4:
            assert process.poll() is None
            time.sleep(0.002)
        for shard in (corpus / "train").glob("*.tar"):
            data = bytearray(shard.read_bytes())
            for place in range(len(data) // 8, len(data)):
                data[place] ^= 1
            shard.write_bytes(data)
        said = process.communicate(timeout=400)[1]
    assert process.returncode == 1, said[-2000:]
    assert not events(run, "restart")
    assert any(event.get("repeats") for event in events(run, "fault")), said[-2000:]
