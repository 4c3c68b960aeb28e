"""The config of any objective, and those of token prediction. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from common.module_interfaces import TokenLoss

if TYPE_CHECKING:
    from data.config import DataConfig
    from trainer.models.config import ModelConfig


ZLoss = Annotated[
    float,
    "λ · (log Z)² is added to a target's loss while training, so that the softmax's Z stays near 1; in PaLM "
    "1e-4",
    "≥ 0",
]
LabelSmoothing = Annotated[
    float,
    "this share of a target's probability is spread evenly over the vocabulary while training",
    "≥ 0",
    "< 1",
]


class ObjectiveConfig:
    """The config of any objective: a dataclass of its keys, which inherits from this class and overrides the
    facts that differ from next-token prediction's.

    kind: the value of `objective.kind` that chooses it.
    objective_class: "module:Class" of the `common.objective.Objective` that it describes, imported only when
        a run is built. Its arguments are this config and a `trainer.objectives.context.ObjectiveContext`.
    needs: what a model must offer (`ModelConfig.offers`); a model without is refused by name.
    scores_text: whether the summed loss is the negative log-likelihood of the text, so that a held-out set
        has bits per byte.
    of_texts: figures of an evaluation that need the texts of a held-out set, beside `figures`.
    least_rows: of a global batch; with fewer there is nothing to learn.
    """

    objective_class: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    scores_text: ClassVar[bool] = False
    of_texts: ClassVar[tuple[str, ...]] = ()
    least_rows: ClassVar[int] = 1
    kind: str

    def targets_per_row(self, seq_len: int) -> float:
        """Return about how many targets a row of the stream has: what the engine's loss is scaled by before
        the true count is known. Within a factor of two is enough; it decides how gradients round, so it must
        not depend on the layout.
        """
        return seq_len

    def row_length(self, seq_len: int) -> int:
        """Return the length of the model's rows, of `seq_len` tokens of the stream each."""
        return seq_len

    def positions_of_head(self, seq_len: int) -> float:
        """Return how many positions of a row the model's last part computes: what its operations are counted
        for.
        """
        return self.row_length(seq_len)

    def extra_ids(self, seq_len: int) -> tuple[tuple[str, ...], ...]:
        """Return for each token that the objective needs besides text, such as a mask, the names that it may
        have in a tokenizer. `ObjectiveContext.ids` gives their ids. `model.vocab` must hold them.
        """
        return ()

    def token_loss(self) -> TokenLoss:
        """Return what is minimised beside the negative log-likelihood of a token."""
        return TokenLoss()

    def figures(self, measures: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return the figures of an evaluation besides the loss, by name.

        measures: what `common.objective.Measures` gave, summed over the held-out set: name → (sum, count).
            By default each is a figure, the quotient.
        """
        return {name: total / max(1.0, count) for name, (total, count) in measures.items()}

    def check(self, model: ModelConfig, data: DataConfig) -> None:
        """Raise a ValueError of one line, before any rank starts, that names the first key of the model or
        the data that does not go with this objective. `needs` is checked before.
        """


def check_room_for_text(seq_len: int, kind: str) -> None:
    """Raise ValueError where a row of one text has no room for any of its tokens."""
    if seq_len < 2:
        raise ValueError(
            f"data.seq_len={seq_len}: the first input of a text is its separator, so objective.kind={kind} "
            "would see none of its tokens: set at least 2"
        )


def incomplete(model: ModelConfig, offer: str, lacks: str) -> ValueError:
    """Return the error of a model whose config says that it offers something, and lacks what goes with it."""
    return ValueError(
        f"model.kind={model.kind}: {type(model).__name__} offers {offer!r} and has no {lacks}: see "
        "docs/examples/own_model.md"
    )


@dataclass
class CausalLMConfig(ObjectiveConfig):
    """What is minimised: the cross-entropy of the next token."""

    objective_class: ClassVar[str] = "trainer.objectives.causal_lm:CausalLM"
    needs: ClassVar[frozenset[str]] = frozenset({"next token"})
    scores_text: ClassVar[bool] = True

    kind: Annotated[Literal["causal_lm"], "which objective; causal_lm: the next token"] = "causal_lm"
    z_loss: ZLoss = 0.0
    label_smoothing: LabelSmoothing = 0.0

    def token_loss(self) -> TokenLoss:
        return TokenLoss(self.z_loss, self.label_smoothing)
