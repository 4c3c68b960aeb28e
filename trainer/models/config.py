"""What the config of every model answers, without building the model. Imports no torch.

The rest of the project knows a model by this interface: which tokens it takes, how large it is, what a step
of it costs, which layouts it fits and how `parallel` cuts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from common.model_plan import ModelPlan

InitFrom = Annotated[
    str,
    "what the first weights are: a Hugging Face folder, a run folder, or RUN@STEP; keys of model: that are "
    "left out are that model's; empty: weights are drawn",
]
"""Type of the key `init_from`, which every model's config has."""

NEXT_TOKEN = "next token"
"""What a model that continues text offers; see `ModelConfig`."""

HITS = "hits"
"""What a model offers that tells which targets it would have chosen itself; see `ModelConfig`."""


@dataclass(frozen=True)
class Parts:
    """A number for each part of a model that a pipeline can cut between.

    first: what comes before the blocks (an embedding), on the first stage.
    block: one block.
    blocks: the number of blocks.
    last: what comes after the blocks (a head), on the last stage.
    """

    first: int
    block: int
    blocks: int
    last: int

    @property
    def total(self) -> int:
        return self.first + self.blocks * self.block + self.last


class ModelConfig(Protocol):
    """The config of a model: a dataclass of its keys, with the model's facts as methods.

    A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.

    model_class: "module:Class" of the torch module, imported when a model is built. Its one argument is the
        config.
    kind: the value of `model.kind` that chooses this config.
    vocab: number of token ids that the model takes; 0 for a model that takes no tokens.
    offers: what objectives may ask of the model: `ObjectiveConfig.needs` names what they need. In use:
        "next token"     losses of `targets` [rows, seq], each token attending only to those before it;
        "prefix"         the same, and with `prefix` [rows] so many tokens at a row's beginning attend to each
                         other;
        "hits"           "next token" with `hits`, bool [rows, seq], which is filled with whether a target has
                         the largest logit;
        "masked tokens"  losses of `targets` at `places`, both [rows, places], every token attending to all of
                         its document;
        "classes"        a logit for each class, float [rows, classes]; see `trainer.models.pictures`;
        "embedding"      embeddings of a row's two sides, float [rows, 2 · embedding + learnt]; see
                         `trainer.models.pairs`;
        "pixels"         the values of the patches at `places` [rows, places], which are hidden from it: float
                         [rows, places · values].
    """

    model_class: ClassVar[str]
    offers: ClassVar[frozenset[str]]

    @property
    def kind(self) -> str: ...
    @property
    def vocab(self) -> int: ...

    def check(self) -> None:
        """Raise a ValueError of one line that names the first key that does not go with another."""

    def check_seq_len(self, seq_len: int) -> None:
        """Raise a ValueError with both numbers where the model does not take rows of `seq_len` tokens."""

    def check_layout(self, *, tp: int, cp: int) -> None:
        """Raise a ValueError with the arithmetic where the model cannot be split over tp · cp ranks."""

    def positions_of_row(self, seq_len: int) -> int:
        """Return the positions of a row in the hidden states: what tensor and context parallelism divide. For
        a model without tokens `seq_len` has no meaning.
        """
        ...

    def row_unit(self, seq_len: int) -> tuple[str, int]:
        """Return what speed is measured in, such as "tokens" or "images", and how many a row has of it."""
        ...

    def plan(self) -> ModelPlan:
        """Return how the model is cut, sharded and initialised."""
        ...

    def block_counts(self) -> Mapping[str, int]:
        """Return the length of each list of blocks that a pipeline cuts, by the key that sets it."""
        ...

    def parameters(self) -> Parts:
        """Return the number of parameters, tied ones once."""
        ...

    def sizes_to_lower(self) -> tuple[str, ...]:
        """Return `model.KEY=VALUE` of the keys to lower for a smaller model, the most effective first."""
        ...

    def training_flops(self, seq_len: int) -> Parts:
        """Return the floating-point operations of forward and backward for one row of a batch.

        A row is a sequence of `seq_len` tokens, or whatever else one row of this model's batches is (an
        image). A multiply-add is 2 operations, backward is twice the forward, and what is computed again
        (recomputation) is not counted. A forward alone is a third.
        """
        ...

    def hidden_elements(self, seq_len: int) -> int:
        """Return the elements of the hidden state between two blocks, for one row of a batch."""
        ...

    def attention_elements(self, seq_len: int) -> int:
        """Return the elements of queries, keys, values and result of one block's attention, for one row."""
        ...


@runtime_checkable
class BeginsFrom(Protocol):
    """The config of a model that may begin from another one's weights."""

    @property
    def init_from(self) -> str: ...


def init_from(cfg: object) -> str:
    """Return what a model's config says of its first weights; "" where they are drawn."""
    return cfg.init_from if isinstance(cfg, BeginsFrom) else ""
