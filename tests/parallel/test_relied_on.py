"""What is used of other packages without being promised is looked for when an engine is built."""

import re
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from parallel.relied_on import borrow
from runs import Case, build, train


def without(context: Any, holder: Any, name: str, case: Case) -> str:
    """What building an engine says where `holder` has no `name`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(holder, name)
        try:
            build(case, context.rank, context.world).close()
        except ValueError as error:
            return str(error)
    return ""


def test_a_torch_without_what_fsdp_is_driven_by_is_named(ranks: Any) -> None:
    (said, _) = ranks(2).run(without, FSDPModule, "_get_fsdp_state", Case(parallel={"zero": 2}))
    version = torch.__version__
    assert said.startswith(f"torch {version} has no FSDPModule._get_fsdp_state") and "\n" not in said


def test_a_torch_whose_stages_receive_another_way_is_named(ranks: Any) -> None:
    (said, _) = ranks(2).run(without_receives, Case(parallel={"pp": 2}))
    assert said.startswith(f"torch {torch.__version__} has no Stage.grad_recv_info") and "\n" not in said


def without_receives(context: Any, case: Case) -> str:
    """What the first step says where a stage keeps what it receives elsewhere."""
    from torch.distributed.pipelining import PipelineStage

    engine = build(case, context.rank, context.world)
    own = PipelineStage.__init__

    def otherwise(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        del self.grad_recv_info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PipelineStage, "__init__", otherwise)
        try:
            train(engine, case)
        except ValueError as error:
            return str(error)
        finally:
            engine.close()
    return ""


@pytest.mark.parametrize(
    ("module", "name", "missing"),
    [
        ("torch.distributed.pipelining._moved", "stage_backward", "torch.distributed.pipelining._moved"),
        ("torch.distributed.pipelining", "_dropped", "torch.distributed.pipelining._dropped"),
    ],
)
def test_what_is_borrowed_is_named_where_it_has_gone(module: str, name: str, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"^torch {re.escape(torch.__version__)} has no {missing}, "):
        borrow("torch", module, name)
