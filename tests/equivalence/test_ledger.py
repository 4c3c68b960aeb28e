"""The ledger of a run on every kind of layout: one rank speaks for each data rank, and only one."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.run import assemble
from whole_runs import make_corpus, records, write_config

STEPS, BATCH = 2, 8


def run(context: Any, config: Path, overrides: list[str]) -> int:
    """A whole run on the ranks of a pool; returns how many data ranks it had."""
    cfg = reading.load(config, overrides)
    with ExitStack() as stack:
        made = assemble(cfg, Runtime(context.rank, context.world, context.rank, torch.device("cpu")), stack)
        assert made()
        return made.engine.data_ranks


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    changes = {"train__steps": STEPS, "train__micro_batch": 1, "train__eval_every": 0, "checkpoint__every": 0}
    return write_config(
        folder, make_corpus(folder, documents=20), model__layers=2, model__kv_heads=4, **changes
    )


@pytest.mark.parametrize(
    ("layout", "data_ranks"),
    [
        pytest.param(("cp=2", "zero=0"), 2, marks=pytest.mark.slow),
        pytest.param(("cp=2", "zero=1"), 2, marks=pytest.mark.slow),
        (("cp=2", "dp_replicate=2", "zero=2"), 2),
        pytest.param(("tp=2", "zero=0"), 2, marks=pytest.mark.slow),
        (("pp=2", "zero=1"), 2),
        pytest.param(("cp=2", "tp=2"), 1, marks=pytest.mark.slow),
        pytest.param(("cp=2", "pp=2"), 1, marks=pytest.mark.slow),
        (("tp=2", "pp=2"), 1),
        (("dp_replicate=2", "zero=1"), 4),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_every_sequence_is_in_the_ledger_once(
    ranks: Any, tmp_path: Path, config: Path, layout: tuple[str, ...], data_ranks: int
) -> None:
    overrides = [f"run_dir={tmp_path / 'run'}", *(f"parallel.{key}" for key in layout)]
    assert ranks(4).run(run, config, overrides) == [data_ranks] * 4
    ledger = records(tmp_path / "run" / "ledger.jsonl")
    assert len(ledger) == STEPS * data_ranks
    for step in range(STEPS):
        rows = {line["dp_rank"]: line["sequences"] for line in ledger if line["step"] == step + 1}
        assert sorted(rows) == list(range(data_ranks))
        numbers = [number for rank in sorted(rows) for number in rows[rank]]
        assert numbers == list(range(step * BATCH, (step + 1) * BATCH))
