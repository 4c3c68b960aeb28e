"""Losses and counts of rows, added up."""

import pytest
import torch

from parallel.gradients.sums import Sums, unpack


def test_rows_are_added_up_in_total_and_by_source() -> None:
    sums = Sums(2, 1, torch.device("cpu"))
    sums.add(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0]), torch.tensor([1, 0]))
    assert unpack(sums.packed[1:].tolist()) == (8.0, 3.0, ((5.0, 2.0), (3.0, 1.0)))


@pytest.mark.parametrize("shape", [(), (4, 64), (1,)])
def test_a_model_that_gives_no_loss_a_row_is_told_so(shape: tuple[int, ...]) -> None:
    """A mean, a loss for each token, the loss of a batch."""
    sums = Sums(0, 0, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the loss has shape .*, and a number for each of 4 rows is needed"):
        sums.add(torch.zeros(shape), torch.ones(4), None)
