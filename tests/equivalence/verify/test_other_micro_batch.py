"""The reference has smaller micro-batches than the layout: so a model whose rows see one another is found."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from runs import Alone
from trainer.config import reading
from trainer.models.decoder.block import Block
from trainer.verify.reference import with_other_micro_batch
from verifying import compared, recorded
from whole_runs import make_corpus, write_config


@pytest.mark.parametrize("see_one_another", [False, True])
def test_rows_that_see_one_another_are_found(
    see_one_another: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As BatchNorm does, in a module that no check knows."""
    forward = Block.forward

    def centred(self: Block, x: Tensor, *rest: Any) -> Tensor:
        found = forward(self, x, *rest)
        return found - 0.1 * found.mean(dim=0)

    if see_one_another:
        monkeypatch.setattr(Block, "forward", centred)
    for name in ("run", "reference", "corpus"):
        (tmp_path / name).mkdir()
    config = write_config(tmp_path / "run", make_corpus(tmp_path / "corpus"))
    reference = recorded(config, [], tmp_path / "reference", 1)
    assert compared(Alone(), config, [], reference)["equal"] != see_one_another


@pytest.mark.parametrize(("rows", "fewer"), [(8, 4), (9, 3), (7, 1), (2, 1), (1, 1)])
def test_it_is_the_largest_proper_divisor(rows: int, fewer: int, tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path, train__micro_batch=rows, train__global_batch=rows)
    assert with_other_micro_batch(reading.load(str(config), [])).train.micro_batch == fewer
