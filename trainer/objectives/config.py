"""The config of each objective, and which objectives there are. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol


class ObjectiveConfig(Protocol):
    """The config of any objective: a dataclass of its keys.

    kind: the value of `objective.kind` that chooses it.
    objective_class: "module:Class" of the `common.objective.Objective` that it describes, imported only when
        a run is built. Its arguments are the config's other fields, by name.
    """

    objective_class: ClassVar[str]

    @property
    def kind(self) -> str: ...


@dataclass
class CausalLMConfig:
    """What is minimised: the cross-entropy of the next token."""

    objective_class: ClassVar[str] = "trainer.objectives.causal_lm:CausalLM"

    kind: Annotated[Literal["causal_lm"], "which objective; causal_lm: the next token"] = "causal_lm"


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {"causal_lm": CausalLMConfig}
"""`objective.kind` → the dataclass of its keys. The first is the default."""
