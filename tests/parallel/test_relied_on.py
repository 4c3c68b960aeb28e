"""What is used of other packages without being promised is looked for when an engine is built."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from parallel.relied_on import borrow
from runs import Case, build, train
from whole_runs import write_config


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


WITHOUT = """
import sys
import torch._higher_order_ops as operators
del operators.flex_attention
from trainer import __main__ as rank; from trainer.process import entry
sys.exit((rank if sys.argv[1].endswith(".yaml") else entry).main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "room", [[], pytest.param(["trainer.verify.command", "record", "."], marks=pytest.mark.slow)]
)
def test_what_is_missing_at_import_is_one_line_too(tmp_path: Path, room: list[str]) -> None:
    config = write_config(tmp_path, tmp_path)
    command = [sys.executable, "-c", WITHOUT, *room, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: torch {torch.__version__} has no torch._higher_order_ops.flex_attention")


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
