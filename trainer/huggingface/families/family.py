"""What is known of one architecture of `transformers`. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.huggingface.fields import Fields
from trainer.huggingface.mapping import Mapped


@dataclass(frozen=True)
class Family:
    """One architecture, both ways.

    architecture: its class in `transformers`, which loads an exported folder.
    model_type: the key of config.json by which a folder is told to be of this family.
    config: our model's config class.
    to_config: (our config, tokens of a training sequence) → the keys of their config. For a config that the
        architecture cannot express the keys describe another model: `choose.for_export` compares.
    from_config: their config → ours. ValueError, one line, naming a key that we do not have.
    mapped: our config → where each of our parameters is.
    base: what begins the names of the tensors of the model without its head; a folder that was saved of that
        model alone leaves it out.
    also: our config → places of parameters of other heads, which a folder may have beside the model: they are
        read where another model takes them, and never written.
    aliases: a tensor's name → another one under which some folders have it.
    preprocessor: our config → the content of preprocessor_config.json; None: the model takes no pictures.
    objective: the `objective.kind` of the runs that it is for, where another architecture has the same model;
        empty: of all.
    left_open: keys of our config that the architecture says nothing of: what follows it. A parameter that is
        theirs alone is not in it.
    own_tokenizer: `AutoTokenizer` builds this architecture's own tokenizer, whatever tokenizer.json says, so
        ids are right with `PreTrainedTokenizerFast` alone (transformers 5, tokenization_auto.py,
        MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS).
    """

    architecture: str
    model_type: str
    config: type[Any]
    to_config: Callable[[Any, int], dict[str, Any]]
    from_config: Callable[[Fields], Any]
    mapped: Callable[[Any], list[Mapped]]
    base: str = ""
    also: Callable[[Any], list[Mapped]] = lambda cfg: []
    aliases: Mapping[str, str] = field(default_factory=dict)
    preprocessor: Callable[[Any], dict[str, Any]] | None = None
    objective: str = ""
    left_open: frozenset[str] = frozenset()
    own_tokenizer: bool = False

    def known_as(self, name: str) -> tuple[str, ...]:
        """Return the names under which a folder may have the tensor `name`, the usual one first."""
        names = [name, *([self.aliases[name]] if name in self.aliases else [])]
        # The names of TensorFlow's LayerNorm, which BERT's published weights still have.
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            names += [one.replace(new, old) for one in names if new in one]
        bare = (one.removeprefix(self.base) for one in names if self.base and one.startswith(self.base))
        return (*names, *bare)
