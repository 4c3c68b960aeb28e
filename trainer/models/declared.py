"""Does a model's plan describe its module? Found out once the module is built, before it is cut.

A plan is data that a config states (`common.model_plan`), for models of the user's own too. What is wrong in
it would end in an error of torch's, far from its cause, or in a parameter that no stage has.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from common.model_plan import Init, InitKind, ModelPlan
from trainer.models.config import Parts

_KINDS = typing.get_args(InitKind)


def wrong_plan(plan: Any, model: nn.Module, block_counts: Sequence[int]) -> str:
    """Return what a plan says of a whole model that is not so, in one line; "" where all of it is.

    block_counts: the length of each tower's list of blocks, as the config states it.
    """
    if not isinstance(plan, ModelPlan):
        return f"plan() returns a {type(plan).__name__}, not a ModelPlan"
    found = next(_of_towers(plan, model, block_counts), "")
    return found or next(_of_parameters(plan, model), "")


def wrong_size(stated: Parts, model: nn.Module) -> str:
    """Return in one line where a model has another number of parameters than its config says; else "". What a
    step costs, MFU, and what fits into memory are reckoned from that number.
    """
    has = sum(parameter.numel() for parameter in model.parameters())
    if has == stated.total:
        return ""
    blocks = f"{stated.blocks} blocks of {stated.block:,}"
    return (
        f"parameters() says {stated.total:,} (before the blocks {stated.first:,}, {blocks}, behind them "
        f"{stated.last:,}), and the module has {has:,}"
    )


def _of_towers(plan: ModelPlan, model: nn.Module, block_counts: Sequence[int]) -> Iterator[str]:
    if len(block_counts) != len(plan.towers):
        yield f"block_counts() has {len(block_counts)} numbers, and plan() {len(plan.towers)} towers"
    for tower, count in zip(plan.towers, block_counts):
        blocks = _at(model, tower.blocks)
        if not isinstance(blocks, nn.ModuleDict):
            what = "there is none" if blocks is None else f"that is a {type(blocks).__name__}"
            yield f"plan() has its blocks in {tower.blocks!r}, and {what}: make it a ModuleDict"
        elif list(blocks) != [str(number) for number in range(len(blocks))]:
            yield f"the keys of {tower.blocks!r} are {', '.join(blocks)}: call them 0, 1, 2, …"
        elif len(blocks) != count:
            yield f"{tower.blocks!r} has {len(blocks)} blocks, and block_counts() says {count}"
        for name in (*tower.first, *tower.last):
            if not isinstance(_at(model, name), nn.Module):
                yield f"plan() names a module {name!r}, and there is none"


def _of_parameters(plan: ModelPlan, model: nn.Module) -> Iterator[str]:
    ends = tuple(f"{name}." for name in (*plan.first, *plan.last))
    every = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in every.items():
        if not plan.block_of(name) and not name.startswith(ends):
            yield f"parameter {name!r} is in none of the towers of plan(): no pipeline stage would keep it"
        shape = tuple(parameter.shape)
        init, error = _called(plan.init, name, shape)
        if not error and not _is_init(init):
            error = f"returns {init!r}"
        if error:
            yield f"init({name!r}, {shape}) of plan() {error}: give an Init with one of {', '.join(_KINDS)}"
        _, error = _called(plan.no_decay, name, shape)
        if error:
            yield f"no_decay({name!r}, {shape}) of plan() {error}"
    for pair in plan.tied:
        if every.get(pair[0]) is None or every.get(pair[0]) is not every.get(pair[1]):
            yield f"plan() says that {pair[0]!r} and {pair[1]!r} are one parameter, and they are not"


def _is_init(found: Any) -> bool:
    numbers = (found.std, found.value) if isinstance(found, Init) else (math.nan,)
    return all(map(math.isfinite, numbers)) and found.std >= 0 and found.kind in _KINDS


def _called(function: Callable[..., Any], name: str, shape: tuple[int, ...]) -> tuple[Any, str]:
    """(what the function returns, how it fails)."""
    try:
        return function(name, shape), ""
    except Exception as error:  # a function of the user's
        return None, f"fails: {type(error).__name__}: {' '.join(str(error).split())}"


def _at(model: nn.Module, path: str) -> Any:
    """Return what is at a dotted path; None where there is nothing."""
    found: Any = model
    for part in path.split("."):
        found = dict(found.named_children()).get(part) if isinstance(found, nn.Module) else None
    return found
