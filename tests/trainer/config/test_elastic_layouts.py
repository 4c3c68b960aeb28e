"""One config on several numbers of ranks: which layout a start takes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from trainer.config import checks, reading

LAYOUTS: list[dict[str, Any]] = [{"tp": 2, "dp_shard": 2}, {"tp": 2}, {"dp_shard": 3, "micro_batch": 4}]
CONFIG = """
name: tiny
model: {{layers: 2, hidden: 64, heads: 4, vocab: 512}}
data: {{sources: [{{path: corpus}}], seq_len: 64}}
train: {{steps: 4, global_batch: 24, micro_batch: 2, ranks: {ranks}}}
parallel: {{layouts: {layouts}, tp: {tp}}}
"""


def config(tmp_path: Path, *, ranks: Any = (), layouts: Any = LAYOUTS, tp: int = 1) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(ranks=list(ranks), layouts=layouts, tp=tp))
    return reading.load(file)


@pytest.mark.parametrize(
    ("world", "sizes", "micro_batch"),
    [(2, "dp1 zero1 tp2", 2), (3, "dp3 zero1 tp1", 4), (4, "dp2 zero1 tp2", 2), (6, "dp3 zero1 tp2", 2)],
)
def test_a_start_takes_the_first_layout_that_fits(
    world: int, sizes: str, micro_batch: int, tmp_path: Path
) -> None:
    cfg = config(tmp_path)
    assert str(checks.layout(cfg, world)) == sizes
    found = checks.on_ranks(cfg, world)
    assert found.train.micro_batch == micro_batch
    assert found.train.global_batch == cfg.train.global_batch
    assert str(checks.layout(found, world)) == sizes  # again, from what the first choice left


@pytest.mark.parametrize(
    ("world", "ranks", "layouts", "words"),
    [
        (1, [2, 4], LAYOUTS, ["train.ranks=[2, 4]", "1 rank", "start 2 to 4"]),
        (8, [2, 4], LAYOUTS, ["train.ranks=[2, 4]", "8 ranks"]),
        (5, [], LAYOUTS, ["none fits 5 ranks", "[0]", "tp 2 · pp 1 = 4", "[1]", "[2]"]),
        (10, [], [{"tp": 2}], ["train.global_batch=24", "5 data ranks · train.micro_batch=2 = 10"]),
    ],
)
def test_what_fits_nothing_is_one_line_with_the_arithmetic(
    world: int, ranks: list[int], layouts: Any, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refused:
        checks.layout(config(tmp_path, ranks=ranks, layouts=layouts), world)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("ranks", [[2], [4, 2], [1, 2, 3], [0, 2]])
def test_train_ranks_is_two_numbers_in_order(ranks: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.ranks"):
        config(tmp_path, ranks=ranks)


def test_a_layout_that_the_engine_cannot_do_does_not_fit(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.parallel.engine = "deepspeed"
    assert str(checks.layout(cfg, 3)) == "dp3 zero1 tp1"
    with pytest.raises(ValueError, match=r"parallel\.tp=2 not with parallel\.engine=deepspeed"):
        checks.layout(cfg, 4)


def test_sizes_are_in_one_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallel\.tp=2: parallel\.layouts has"):
        config(tmp_path, tp=2)


def test_a_config_with_layouts_is_written_and_read_back(tmp_path: Path) -> None:
    cfg = config(tmp_path, ranks=[2, 4])
    (tmp_path / "again.yaml").write_text(reading.dump(cfg))
    assert reading.load(tmp_path / "again.yaml") == cfg
