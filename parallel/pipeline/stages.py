"""Cutting a model into pipeline stages."""

from collections.abc import Sequence

from torch import nn

from common.model_plan import ModelPlan
from parallel.layout.cuts import cut_blocks


def cut(model: nn.Module, plan: ModelPlan, how: str, stages: int) -> list[range]:
    """Blocks of each stage, by number. Cost: the parameters that are multiplied, so no tables."""

    def cost(module: nn.Module | None) -> float:
        if module is None:
            return 0.0
        tables = (m for m in module.modules() if not isinstance(m, nn.Embedding))
        return float(sum(p.numel() for m in tables for p in m.parameters(recurse=False)))

    blocks = model.get_submodule(plan.blocks)
    return cut_blocks(
        how,
        [cost(block) for block in blocks.children()],
        stages,
        first=sum(cost(getattr(model, name)) for name in plan.first),
        last=sum(cost(getattr(model, name)) for name in plan.last),
    )


def keep_stage(model: nn.Module, plan: ModelPlan, stage: int, cuts: Sequence[range]) -> None:
    """Leave in `model` what one stage runs. Names do not change."""
    blocks = model.get_submodule(plan.blocks)
    assert isinstance(blocks, nn.ModuleDict)
    for key in list(blocks):
        if int(key) not in cuts[stage]:
            del blocks[key]
    ends = [(plan.first, 0), (plan.last, len(cuts) - 1)]
    for names, home in ends:
        for name in names:
            if stage != home:
                setattr(model, name, None)
