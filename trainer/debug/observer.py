"""Hooks on every module of a rank: statistics of outputs and of their gradients, and the first of these
values that is not finite, named with its module and direction.

Gradients are looked at where they arrive, at a module's output. Hooks on the tensors change nothing in the
graph; full backward hooks of modules would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.model_plan import ModelPlan, matches
from parallel.engine import Micro
from parallel.parameters.sharded_parameter import ShardedParameter, local_of
from parallel.relied_on import borrow
from trainer.debug.moments import Moments

_graph_task = borrow("torch", "torch._C", "_current_graph_task_id")

OUTPUT, OUTPUT_GRADIENT, WEIGHT, WEIGHT_GRADIENT = "output", "output gradient", "weight", "weight gradient"
Found = dict[tuple[str, str], Moments]
"""(one of the four kinds, name of the module or parameter) → moments of this rank's part of the values."""


class Observer:
    """Watches the modules and parameters of one rank from `begin` on, step by step.

    found: of the step so far. Under tensor and context parallelism every rank's outputs are a part of the
        whole, other tokens or other channels, so the moments of all ranks add up to those of one process.
    overflow: what was not finite first in this step's backward, where that may be the loss scale's doing.
    """

    def __init__(self, stages: Sequence[nn.Module], plan: ModelPlan, *, has_loss_scale: bool) -> None:
        """has_loss_scale: a gradient that is not finite is no fault by itself (fp16)."""
        self.found: Found = {}
        self.overflow = ""
        self.last_finite = ""
        self._has_loss_scale = has_loss_scale
        self._sequences: list[tuple[int, ...]] = []
        self._where = ""
        self._calls: Counter[str] = Counter()
        heads = [pattern for pattern, style in plan.tensor if style == "vocab_head"]
        self._handles = [
            module.register_forward_hook(
                partial(self._forward, name, not any(matches(pattern, name) for pattern in heads))
            )
            for stage in stages
            for name, module in stage.named_modules()
            if name  # the root's output is the last module's
        ]

    def begin(self, step: int, batches: Sequence[Micro]) -> None:
        """A step begins: forget the one before."""
        self.found.clear()
        self._calls.clear()
        self.overflow = self.last_finite = ""
        self._where = f"step {step}"
        self._sequences = [batch.sequences for batch in batches]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def look_at_gradients(self, parameters: Sequence[ShardedParameter], to_mean: float) -> None:
        """Take in weights and their gradients, each from the one rank that owns it; make all gradients those
        of the mean loss. For `TorchEngine.look_at_gradients`.
        """
        for (kind, name), moments in self.found.items():
            if kind == OUTPUT_GRADIENT:
                self.found[kind, name] = moments.scaled(to_mean)
        for one in parameters:
            if one.owned and one.tensor.numel():
                assert one.tensor.grad is not None
                self._add(WEIGHT, one.name, Moments.of(one.tensor))
                self._add(WEIGHT_GRADIENT, one.name, Moments.of(one.tensor.grad).scaled(to_mean))

    def _add(self, kind: str, name: str, moments: Moments) -> None:
        self.found.setdefault((kind, name), Moments()).add(moments)

    @torch.no_grad()
    def _look(self, tensor: Tensor, kind: str, name: str, *, counts: bool) -> Moments:
        moments = Moments.of(tensor)
        if counts:
            self._add(kind, name, moments)
        return moments

    def _forward(self, name: str, counts: bool, module: nn.Module, args: Any, output: Any) -> None:
        """counts: False for a head, whose output is losses that every tensor rank has."""
        if not torch.is_grad_enabled() or _graph_task() >= 0:  # evaluation; recomputation in backward
            return
        number = self._calls[name]
        self._calls[name] += 1
        for tensor in _floating(output):
            moments = self._look(tensor, OUTPUT, name, counts=counts)
            if not moments.finite:
                raise RuntimeError(
                    f"forward: the output of {name} is not finite ({_bad(tensor)}): {_cause(module, args)}: "
                    f"{self._at(number)}"
                )
            if tensor.requires_grad:
                tensor.register_hook(partial(self._backward, name, number, counts))

    def _backward(self, name: str, number: int, counts: bool, gradient: Tensor) -> None:
        moments = self._look(gradient, OUTPUT_GRADIENT, name, counts=counts)
        if moments.finite:
            self.last_finite = name
            return
        after = f"; the last that was finite: at the output of {self.last_finite}" if self.last_finite else ""
        what = (
            f"backward: the gradient at the output of {name} is not finite ({_bad(gradient)}){after}: "
            f"{self._at(number)}"
        )
        if not self._has_loss_scale:
            raise RuntimeError(what)
        self.overflow = self.overflow or what

    def _at(self, number: int) -> str:
        if number >= len(self._sequences):
            return self._where
        sequences = self._sequences[number]
        return f"{self._where}, micro-batch {number} (sequences {sequences[0]} to {sequences[-1]})"


def _floating(output: Any) -> Iterator[Tensor]:
    values = output if isinstance(output, tuple | list) else (output,)
    return (value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def _bad(tensor: Tensor) -> str:
    bad = (~tensor.detach().isfinite()).nonzero()
    return f"{len(bad):,} of {tensor.numel():,} values, the first at {bad[0].tolist()}"


def _cause(module: nn.Module, args: Any) -> str:
    """Say whether the module's parameters or its inputs were not finite already."""
    from torch.distributed.tensor import DTensor

    for name, parameter in module.named_parameters(recurse=False):
        # Of a module that FSDP wraps by itself only this rank's rows are left now.
        values = local_of(parameter) if isinstance(parameter, DTensor) else parameter
        if not Moments.of(values).finite:
            return f"its {name} is not ({_bad(values)})"
    if all(Moments.of(tensor).finite for tensor in _floating(args)):
        return "its inputs and its own parameters are"
    return "its input is not either"


@contextmanager
def naming_the_backward(observer: Observer) -> Iterator[None]:
    """Note on an error of autograd's anomaly detection between which modules it arose.

    The error itself names a function of torch. The warning that torch prints with it shows the line of the
    forward pass, which all blocks share.
    """
    try:
        yield
    except RuntimeError as error:
        if "returned nan values" in str(error) and observer.last_finite:
            error.add_note(
                f"backward: the last gradient that was finite is the one at the output of "
                f"{observer.last_finite}"
            )
        raise


def module_of(error: BaseException, stages: Sequence[nn.Module]) -> str:
    """Return the name of the innermost module in whose forward the error was raised; "" where in none."""
    names = {module: name for stage in stages for name, module in stage.named_modules() if name}
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            found = names.get(owner, found)
        trace = trace.tb_next
    return found
