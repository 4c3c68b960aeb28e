"""`germinal verify`: equal layouts pass, and every planted fault is found, with the tensor and rank that
show it.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_planted_faults as faults
import torch

from trainer.config import reading
from trainer.process.interrupts import LeaveAtOnce
from trainer.verify import command, deviation
from trainer.verify.reference import record
from trainer.verify.report import make_report
from verifying import References, compared, runtime
from whole_runs import germinal, make_corpus, write_config

STEPS = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("verify_corpus"))


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("verify"), corpus, train__micro_batch=1)


@pytest.fixture(scope="module")
def references() -> Iterator[References]:
    made = References(STEPS)
    yield made
    made.close()


def nan_on_one_rank(patch: pytest.MonkeyPatch, rank: int) -> None:
    """In a tensor that both ranks have, after the last step: no loss shows it."""
    own = deviation.measure

    def poisoned(engine: Any, root: Path, step: int, *rest: Any) -> list[deviation.Deviation]:
        if rank == 1 and step == STEPS:
            next(c for c in engine.chunks() if c.name == "model.norm.weight").tensor.detach().fill_(math.nan)
        return own(engine, root, step, *rest)

    patch.setattr(deviation, "measure", poisoned)


ZERO_BUBBLE = ["parallel.pp=2", "parallel.zero=3", "parallel.schedule=interleaved_zero_bubble"]


@pytest.mark.parametrize(
    ("precision", "world", "overrides"),
    [
        ("fp32", 2, ["parallel.zero=3"]),
        pytest.param("fp32", 2, ["parallel.tp=2"], marks=pytest.mark.slow),
        ("fp32", 4, ["parallel.pp=2", "parallel.tp=2"]),
        ("fp32", 4, ZERO_BUBBLE),
        pytest.param("bf16", 2, ["parallel.tp=2"], marks=pytest.mark.slow),
        ("bf16", 4, ["parallel.pp=2", "parallel.tp=2"]),
        ("fp16", 2, ["parallel.tp=2"]),
    ],
)
def test_equal_layouts_pass(
    ranks: Any, config: Path, references: References, precision: str, world: int, overrides: list[str]
) -> None:
    settings = [f"train.precision={precision}"]
    reports = ranks(world).run(compared, config, [*settings, *overrides], references(config, settings))
    assert all(report["equal"] for report in reports), reports[0]["problems"]
    assert len(reports[0]["steps"]) == STEPS
    # Nothing of 1 % that tensors have in common may hide, in any precision.
    assert reports[0]["worst_factor"]["limit"] < 0.01


@pytest.mark.parametrize(
    ("precision", "world", "overrides", "fault"),
    [
        ("fp32", 2, ["parallel.tp=2"], faults.norm_not_synchronised),
        ("fp32", 2, ["parallel.tp=2"], nan_on_one_rank),
        ("fp32", 2, ["parallel.zero=2"], faults.micro_batch_counted_twice),
        ("fp32", 2, ["parallel.zero=1"], faults.ranks_read_the_same_data),
        ("fp32", 4, ZERO_BUBBLE, faults.half_of_the_late_products_lost),
        # Each of 1 %, or in a few small tensors only: the smallest that there are.
        pytest.param(
            "bf16", 2, ["parallel.tp=2"], faults.gradient_scaled_on_one_rank, marks=pytest.mark.slow
        ),
        ("bf16", 2, ["parallel.tp=2"], faults.replicated_gradients_left_partial),
        ("bf16", 2, ["parallel.zero=1"], faults.divisor_off_by_one_percent),
        ("fp16", 2, ["parallel.tp=2"], faults.gradient_scaled_on_one_rank),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_planted_fault_is_found(
    ranks: Any,
    config: Path,
    references: References,
    precision: str,
    world: int,
    overrides: list[str],
    fault: Any,
) -> None:
    settings = [f"train.precision={precision}"]
    reference = references(config, settings)
    report = ranks(world).run(compared, config, [*settings, *overrides], reference, fault)[0]
    assert not report["equal"]
    assert report["problems"]


def test_the_diverging_tensor_is_named_with_its_rank(
    ranks: Any, config: Path, references: References
) -> None:
    settings = ["train.precision=fp32"]
    fault = faults.gradient_scaled_on_one_rank
    run = ranks(2).run(compared, config, [*settings, "parallel.tp=2"], references(config, settings), fault)
    named = next(problem for problem in run[0]["problems"] if "diverges first" in problem)
    assert "on rank 1" in named and "step 1" in named and "optim.exp_avg" in named, named


def test_adams_turned_steps_are_left_out_and_nothing_else() -> None:
    """A few elements may be off by two whole steps, as they are where a gradient nearly cancels."""
    step = torch.full((64,), 1e-3, dtype=torch.float64)

    def distance(off: dict[int, float]) -> float:
        layout = step.clone()
        for element, by in off.items():
            layout[element] += by
        return deviation.distance_and_scale(layout, step, base=float(step.norm()), update=True)[0]

    turned = dict.fromkeys(range(deviation.TURNED), -2e-3)
    assert distance(turned) == 0.0
    assert distance({**turned, 9: -2e-3}) > 0.1
    assert distance({3: -2.1e-3}) > 0.1
    assert math.isnan(distance({3: math.nan}))


def test_a_run_that_diverges_by_itself_is_no_reference(config: Path, tmp_path: Path) -> None:
    cfg = reading.load(config, ["parallel.dp_shard=1", "optim.lr=1e30", "optim.warmup_steps=0"])
    with pytest.raises(RuntimeError, match=r"^one process itself diverges at step 2: .*: lower optim\.lr$"):
        record(cfg, runtime(0, 1), STEPS, tmp_path)


def report_of(config: Path, grad_norm: float, loss: float) -> dict[str, Any]:
    """Of one step that overflowed in one process, with this loss and gradient norm on the layout."""
    then = {"loss": 1.0, "grad_norm": math.inf, "count": 1.0}
    layout = then | {"grad_norm": grad_norm, "loss": loss}
    rows = [{"step": 1, "one_process": then, "layout": layout, "limit": 1e-3}]
    return make_report(reading.load(config), rows, [], 1) | {"comms": None}


def test_a_step_that_overflowed_on_both_sides_is_equal(config: Path) -> None:
    assert report_of(config, grad_norm=math.inf, loss=1.0)["equal"]
    assert not report_of(config, grad_norm=1.0, loss=1.0)["equal"]
    assert not report_of(config, grad_norm=math.inf, loss=math.nan)["equal"]


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "table"])
def test_the_verdict_stands_whoever_reads_the_report(
    config: Path,
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = report_of(config, grad_norm=math.inf, loss=math.nan)
    monkeypatch.setattr(command, "compare", lambda *arguments, **options: report)
    monkeypatch.setattr(command.runtimes, "start", lambda **_: runtime(0, 1))
    arguments = [*options, "compare", str(tmp_path), str(config)]
    assert command.main(arguments, LeaveAtOnce("the end")) == 1
    shown = capsys.readouterr()
    if options:
        (step,) = json.loads(shown.out, parse_constant=pytest.fail)["steps"]
        assert step["layout"] == {"loss": None, "grad_norm": None, "count": 1.0}
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert command.main(arguments, LeaveAtOnce("the end")) == 1
    assert capsys.readouterr().err == shown.err and shown.err.startswith("error: not equal: step 1: loss")


def test_command(config: Path) -> None:
    """From the shell: exit code 0 and a document, or 1 where the layouts differ."""
    layout = ["parallel.pp=2", "parallel.schedule=zbv_zero_bubble"]
    done = germinal("verify", config, *layout, "--nproc", 2, "--steps", 2, "--json", "--comms")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["equal"] and len(report["steps"]) == 2
    (pipeline,) = [row for row in report["comms"] if "formula_bytes" in row]
    assert pipeline["axis"] == "pp" and 0 < pipeline["sent_bytes"] <= 1.01 * pipeline["formula_bytes"]
    refused = germinal("verify", config, "--nproc", 3, "--steps", 2)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
