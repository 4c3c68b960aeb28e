"""Domain mismatch, in short: bench/evaluation/domains.py with a smaller model and less text."""

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "evaluation" / "domains.py"


@pytest.fixture(scope="module")
def domains() -> Any:
    spec = importlib.util.spec_from_file_location("bench_domains", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_domains"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def check(domains: Any, changes: dict[str, dict[str, list[float]]]) -> None:
    """[mean, least, most] over the seeds of what a run that goes on changes, in bits per byte."""
    alone, replay = changes[domains.ALONE], changes[domains.REPLAY]
    gain, cost = domains.SECOND, domains.FIRST
    assert alone[gain][2] < -0.3 and replay[gain][2] < -0.3, "in every seed the second domain's go down"
    assert alone[cost][1] > 0.05, "in every seed the first domain's go up"
    assert replay[cost][2] < 0.8 * alone[cost][1], "with a replay by less, in the worst seed of the two"


@pytest.mark.slow
def test_a_second_domain_costs_the_first_and_a_replay_costs_less(domains: Any, tmp_path: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    domains.write_manual(tmp_path / "manual.jsonl")
    rows = (tmp_path / "manual.jsonl").read_text().splitlines()
    (tmp_path / "manual.jsonl").write_text("\n".join(rows[:120]))
    code = [str(stdlib / package) for package in ("json", "logging", "asyncio")]
    domains.prepare_both(code, [str(tmp_path / "manual.jsonl")], tmp_path / "corpora", 300)
    sizes = domains.Sizes(vocab=300, layers=1, hidden=32, seq_len=64, first_steps=150, second_steps=60)
    found = domains.measure(tmp_path / "corpora", tmp_path, sizes, 0)
    check(domains, domains.summary([found])["change"])
    assert "| then second, 10 % first |" in domains.table(domains.summary([found]))


@pytest.mark.slow
def test_the_whole_study_finds_the_same(domains: Any, tmp_path: Path) -> None:
    domains.write_manual(manual := tmp_path / "manual.jsonl")
    sizes = domains.Sizes()
    domains.prepare_both(["embedded:python"], [str(manual)], tmp_path / "corpora", sizes.vocab)
    found = [domains.measure(tmp_path / "corpora", tmp_path, sizes, seed) for seed in range(2)]
    check(domains, domains.summary(found)["change"])


def test_the_figures_of_the_docs_hold(domains: Any) -> None:
    """Of all seeds that the bench was run with; `python bench/evaluation/domains.py` measures them anew."""
    result = json.loads(domains.RESULTS.read_text())
    check(domains, result["change"])
    assert result["seeds"] >= 3
    guide = (BENCH.parents[2] / "docs" / "guides" / "evaluating.md").read_text()
    assert all(line in guide for line in domains.table(result).splitlines()[2:])
