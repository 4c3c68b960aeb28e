"""What a model declares about itself, for `parallel` to apply. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

InitKind = Literal["normal", "trunc_normal", "uniform", "ones", "zeros", "constant"]


@dataclass(frozen=True)
class Init:
    """How one parameter is drawn.

    kind: the distribution; `trunc_normal` is cut at ±3 std, `uniform` lies between ±√3 std.
    std: standard deviation of `normal`, `trunc_normal` and `uniform`.
    value: of `constant`.
    """

    kind: InitKind
    std: float = 0.0
    value: float = 0.0


@dataclass(frozen=True)
class Tower:
    """A list of blocks with a beginning and an end. Paths are dotted, such as `text.layers`.

    blocks: path of the `ModuleDict` of blocks, keyed "0", "1", …. Keys survive a stage cut, so parameters
        keep their names.
    first: paths of modules that only the first pipeline stage keeps. In other stages they are set to None,
        and the model's `forward` skips them.
    last: the same for the last stage.
    """

    blocks: str
    first: tuple[str, ...]
    last: tuple[str, ...]


def every_parameter(name: str) -> bool:
    """Train every parameter."""
    return True


def matches(pattern: str, name: str) -> bool:
    """Whether a module's name fits a pattern, in which `*` stands for one component."""
    wanted, parts = pattern.split("."), name.split(".")
    return len(wanted) == len(parts) and all(w in ("*", p) for w, p in zip(wanted, parts))


@dataclass(frozen=True)
class ModelPlan:
    """How a model may be cut into stages, sharded, initialised and decayed.

    towers: the model's lists of blocks, in the order in which `forward` runs them; most models have one. A
        pipeline stage holds a consecutive part of each, so it runs a part of every tower. Every parameter is
        in a tower.
    tensor: (pattern of a module's name, in which `*` stands for one path component; style). Styles:
        "vocab_embedding"  rows of the table are split over ranks; the output is the sum of the parts;
        "column"           a linear layer split by output features;
        "row"              a linear layer split by input features, which gives partial sums; a bias is added
                           to the sum. A branch of low rank (`module_interfaces.HasLowRank`) is part of the
                           partial sums;
        "partial"          a linear layer split by input features, whose partial sums a module around it adds
                           up;
        "sequence"         weights are whole on every rank, and each rank applies them to a part of the
                           activations (some tokens, or some heads): gradients are summed over the ranks;
        "split"            the module computes for the whole sequence on every rank, and each rank keeps a
                           part of its output along dim 1: gradients are summed over the ranks;
        "gather"           the module's first argument arrives split along dim 1 and is gathered; in backward
                           the ranks' gradients of it are partial sums;
        "alike"            the module's first argument arrives split along dim 1 and is gathered, and every
                           rank computes the same with the whole, such as the head of a pooled token. In
                           backward the output's gradient is divided by the number of ranks, so that the
                           gradients of input and weights are partial sums. Modules inside have the style
                           "sequence";
        "attention_core"   attention over (q, k, v, …), each [batch, heads, seq, head_dim]: a rank computes
                           with its heads. Context parallelism swaps sequence for heads around it;
        "vocab_head"       as "gather", and the rows of the output matrix are split over ranks, and those of
                           a bias. Modules inside have the style "sequence". The module implements
                           `module_interfaces.VocabParallel`, by which it gets its shard.
    tied: (canonical name, alias) of parameters that are one tensor. Only the canonical name is saved.
        Materialising a model from the meta device unties them: the caller has to tie them again.
    hidden_shape: the shape of the first stage's input, such as (batch, seq) → the shape of the hidden states
        between two stages, such as (batch, seq, hidden). Dim 1 is what tensor and context parallelism divide.
        A model of several towers packs their hidden states into one tensor, such as [batch, Σ seq · hidden].
    init: (name, global shape) → how the parameter is drawn.
    no_decay: (name, global shape) → whether the parameter is exempt from weight decay.
    task: paths of modules that belong to a task, such as the layer of the logits of classes. Fine-tuning
        trains them whole, whatever its method, and weights from elsewhere may lack them.
    trained: name → whether the parameter is trained. The others are frozen: they have no gradient and no
        optimiser state, and checkpoints leave them out.

    A model without a vocabulary leaves out the vocabulary's styles.
    """

    towers: tuple[Tower, ...]
    tensor: tuple[tuple[str, str], ...]
    tied: tuple[tuple[str, str], ...]
    hidden_shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    init: Callable[[str, tuple[int, ...]], Init]
    no_decay: Callable[[str, tuple[int, ...]], bool]
    task: tuple[str, ...] = ()
    trained: Callable[[str], bool] = every_parameter

    @property
    def first(self) -> tuple[str, ...]:
        """The first modules of all towers."""
        return tuple(name for tower in self.towers for name in tower.first)

    @property
    def last(self) -> tuple[str, ...]:
        """The last modules of all towers."""
        return tuple(name for tower in self.towers for name in tower.last)

    def in_task(self, name: str) -> bool:
        """Whether a module or parameter belongs to a task."""
        return any(name == path or name.startswith(f"{path}.") for path in self.task)

    def block_of(self, name: str) -> str:
        """Return the path of the block that a module or parameter is in (`layers.3` of `layers.3.mlp.w1`), or
        "" where it is in none.
        """
        for tower in self.towers:
            if name.startswith(f"{tower.blocks}."):
                return ".".join(name.split(".")[: tower.blocks.count(".") + 2])
        return ""
