"""Cutting a model into pipeline stages."""

from collections.abc import Sequence

from torch import nn

from common.model_plan import ModelPlan
from parallel.layout.cuts import cut_blocks
from parallel.parameters.towers import blocks_of, drop, present


def cut(model: nn.Module, plan: ModelPlan, how: str, stages: int) -> list[list[range]]:
    """Blocks of each stage, by number, for each tower. Cost: the parameters that are multiplied, so no
    tables.
    """

    def cost(module: nn.Module) -> float:
        tables = (m for m in module.modules() if not isinstance(m, nn.Embedding))
        return float(sum(p.numel() for m in tables for p in m.parameters(recurse=False)))

    return [
        cut_blocks(
            how,
            [cost(block) for block in blocks.children()],
            stages,
            first=sum(map(cost, present(model, tower.first))),
            last=sum(map(cost, present(model, tower.last))),
        )
        for tower, blocks in zip(plan.towers, blocks_of(model, plan), strict=True)
    ]


def keep_stage(model: nn.Module, plan: ModelPlan, stage: int, cuts: Sequence[Sequence[range]]) -> None:
    """Leave in `model` what one stage runs. Names do not change.

    cuts: of each tower; see `cut`.
    """
    for blocks, of_stage in zip(blocks_of(model, plan), cuts, strict=True):
        for key in list(blocks):
            if int(key) not in of_stage[stage]:
                del blocks[key]
    for names, home in ((plan.first, 0), (plan.last, len(cuts[0]) - 1)):
        if stage != home:
            drop(model, names)
