"""Which step read a sequence, of runs whose global batch changed on the way."""

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.metrics.consumed import steps_reading

CONFIG = "model: {vocab: 16}\ndata: {sources: [{path: c}]}\ntrain: {micro_batch: 1}\n"


def recorded(folder: Path, sizes: list[int], log_every: int) -> RunConfig:
    """A run folder that says of a run whose steps had these sizes what its metrics and its configs would;
    the last config.
    """
    file = folder / "run.yaml"
    file.write_text(CONFIG)
    run = folder / "run"
    run.mkdir()
    cfg = reading.load(file, [f"run_dir={run}"])
    with (run / "metrics.jsonl").open("w") as metrics:
        for step, (size, sequences) in enumerate(zip(sizes, accumulate(sizes)), 1):
            if step == 1 or size != cfg.train.global_batch:
                cfg = replace(cfg, train=replace(cfg.train, global_batch=size))
                run_folder.write_config(run, reading.dump(replace(cfg, run_dir="")).encode(), step - 1)
            if step % log_every == 0:
                metrics.write(json.dumps({"step": step, "sequences": sequences, "loss": 1.0}) + "\n")
                metrics.write(json.dumps({"step": step, "eval": {}}) + "\n")
    (run / "events.jsonl").touch()
    return cfg


@pytest.mark.parametrize("log_every", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "sizes",
    [
        [8] * 10,
        [8] * 4 + [4] * 8,
        [2] * 7 + [6] * 8,
        [4] * 5 + [16] * 2 + [1] * 9,
        [8] * 3 + [24] * 3 + [16] * 9,
    ],
    ids=str,
)
def test_the_step_is_known_or_among_those_named(tmp_path: Path, sizes: list[int], log_every: int) -> None:
    cfg = recorded(tmp_path, sizes, log_every)
    logged = len(sizes) // log_every * log_every
    coming = [*sizes, sizes[-1], sizes[-1]]
    ends = list(accumulate(coming))
    asked = [
        (end - 1 - back * (size - 1), step)
        for step, (size, end) in enumerate(zip(coming, ends), 1)
        for back in (0, 1)
    ]
    for number, step in asked:  # the last and the first sequence of each step
        first, last = steps_reading(cfg, number)
        assert first <= step <= last
        since = (step - 1) // log_every * log_every
        if len(set(sizes[since : since + log_every])) <= 1 or step > logged:
            assert first == last or len(set(sizes)) > 2


def test_a_config_that_was_never_run_reads_with_its_own_batch(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    cfg = reading.load(tmp_path / "run.yaml", [f"run_dir={tmp_path}/run", "train.global_batch=4"])
    assert [steps_reading(cfg, number) for number in (0, 3, 4, 41)] == [(1, 1), (1, 1), (2, 2), (11, 11)]
