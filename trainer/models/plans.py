"""What a model declares about itself, so that no model file knows of ranks, stages or optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """How one parameter is drawn: `normal`, `trunc_normal` (cut at ±3 std), `ones` or `zeros`."""

    kind: str
    std: float = 0.0


@dataclass(frozen=True)
class ModelPlan:
    """How a model may be cut, sharded, initialised and decayed. `parallel` applies it.

    blocks: path of the `ModuleDict` of blocks, keyed "0", "1", …. Keys survive a stage cut, so names do too.
    first, last: top-level modules that only the first or the last pipeline stage keeps; elsewhere they are
        set to None, and `forward` goes without them.
    tensor: (pattern of a module's name, where `*` stands for one path component; style). Styles:
        "vocab_embedding"  rows of the table are split over ranks; the output is the sum of the parts;
        "column", "row"    a bias-free linear split by output or by input features; "row" gives partial sums;
        "sequence"         the weights are whole on every rank and each rank sees a part of the activations
                           (some tokens, or some heads), so the weights' gradients are summed over ranks;
        "gather"           the module's first argument arrives split along dim 1 and is needed whole; in
                           backward the ranks' gradients for it are partial sums;
        "vocab_head"       rows of the output matrix are split over ranks: as "gather", and the module's
                           `shard` is set (see `head.VocabShard`).
    tied: (canonical name, alias) of parameters that are one tensor. Only the canonical name is saved.
        Materialising from the meta device unties them: whoever does that ties them again.
    init: name and global shape → how to draw. no_decay: name and global shape → exempt from weight decay.

    A model without a vocabulary (vision), or with more than one list of blocks (two towers), fits: `blocks`
    names the list that is cut, the rest goes to `first` or `last`, and styles that do not apply go unnamed.
    """

    blocks: str
    first: tuple[str, ...]
    last: tuple[str, ...]
    tensor: tuple[tuple[str, str], ...]
    tied: tuple[tuple[str, str], ...]
    init: Callable[[str, tuple[int, ...]], Init]
    no_decay: Callable[[str, tuple[int, ...]], bool]
