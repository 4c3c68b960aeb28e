"""What is used of other packages without being promised is looked for when an engine is built."""

from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from runs import Case, build


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
