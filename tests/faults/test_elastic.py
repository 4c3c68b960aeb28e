"""A run whose number of ranks changes: every sequence once, and the curve of the undisturbed run."""

from pathlib import Path

import pytest

from whole_runs import (
    GERMINAL,
    consumed,
    events,
    kill_when,
    make_corpus,
    records,
    train,
    whole_steps,
    write_config,
)

LAYOUTS = [{"tp": 2, "dp_shard": 2}, {"tp": 2, "dp_shard": 1}]
STEPS, BATCH = 12, 8


@pytest.mark.slow
def test_four_ranks_then_two_then_four(tmp_path: Path) -> None:
    """Killed in between. The steps of the first four ranks are the undisturbed run's to the last bit."""
    corpus = make_corpus(tmp_path)
    reference, run = tmp_path / "reference", tmp_path / "run"
    keys = {"parallel__layouts": LAYOUTS, "train__ranks": [2, 4], "checkpoint__every": 2, "model__layers": 2}
    keys |= {"train__steps": STEPS, "train__eval_every": 0}
    config = write_config(tmp_path, corpus, **keys)
    train(config, f"run_dir={reference}", nproc=4)
    starts = []
    for nproc, until in ((4, 4), (2, 8)):
        at_step = lambda until=until: whole_steps(run / "metrics.jsonl") >= until  # noqa: E731
        kill_when([GERMINAL, "train", config, "--nproc", nproc], at_step)
        starts.append(max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")))
    train(config, nproc=4)

    assert consumed(run) == list(range(STEPS * BATCH))
    layouts = [event["layout"] for event in events(run, "start")]
    assert layouts == ["dp2 zero1 tp2", "dp1 zero1 tp2", "dp2 zero1 tp2"]
    ledger = records(run / "ledger.jsonl")
    two = [line["step"] for line in ledger if line["layout"] == "dp1 zero1 tp2"]
    assert two == list(range(starts[0] + 1, starts[1] + 1))
    assert all(line["layout"] == "dp2 zero1 tp2" for line in ledger if line["step"] not in two)

    mine, undisturbed = (
        [line for line in records(folder / "metrics.jsonl") if "loss" in line] for folder in (run, reference)
    )
    assert [line["step"] for line in mine] == list(range(1, STEPS + 1))
    assert mine[: starts[0]] == undisturbed[: starts[0]]
    for ours, theirs in zip(mine, undisturbed):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), (key, ours, theirs)
    assert len(list((run / "configs").iterdir())) == 1, "the config is the same, whatever the layout"
