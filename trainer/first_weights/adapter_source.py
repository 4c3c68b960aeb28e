"""An adapter on disk as a source of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import xxhash
from safetensors import safe_open
from torch import Tensor, nn

from trainer.huggingface.adapter import OWN_WEIGHTS, Adapter
from trainer.huggingface.peft_format import CONFIG, PREFIX
from trainer.models.config import ModelConfig
from trainer.models.tuned.config import FinetuneConfig
from trainer.ranks import Ranks


class AdapterSource:
    """The tensors of an adapter, by our names; see `WeightSource`.

    An adapter of PEFT's may have several ranks and scales, and one of ours another rank or scale than the
    run. Matrices are filled up with zeros to the run's rank, and B is multiplied by its share of the run's
    scale. They are small, and read whole.
    """

    def __init__(self, adapter: Adapter, model: ModelConfig, finetune: FinetuneConfig) -> None:
        self._adapter, self.model, self._finetune = adapter, model, finetune
        self._file = safe_open(adapter.path / adapter.file, "pt")

    @property
    def where(self) -> str:
        return str(self._adapter.path)

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        return self._adapter.parameters

    @property
    def besides(self) -> list[str]:
        return []

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        where = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
        return self._tensor(name)[where]

    def forget(self) -> None:
        """Nothing is kept."""

    def check(self) -> None:
        """The file is read at once."""

    def digest(self, ranks: Ranks) -> str:
        names = [CONFIG] if self._adapter.file != OWN_WEIGHTS else []
        content = b"".join((self._adapter.path / name).read_bytes() for name in (*names, self._adapter.file))
        return xxhash.xxh3_128_hexdigest(content)

    def _tensor(self, name: str) -> Tensor:
        layer, _, matrix = name.rpartition(".lora.")
        if self._adapter.file == OWN_WEIGHTS:
            stored = self._stored(name)
            if not layer:
                return stored
            own = self._adapter.settings
            return self._fitted(stored, matrix, own["rank"], own["alpha"] / own["rank"])
        if name in self._adapter.whole:
            one = self._adapter.whole[name]
            whole = self._stored(PREFIX + one.theirs)
            return (whole.mT if one.transposed else whole)[one.first : one.first + one.shape[0]]
        kept = self._adapter.branches[layer]
        if matrix == "a.weight":
            return self._fitted(self._stored(kept.branch.their_a), matrix, kept.rank, kept.scale)
        first = kept.branch.first
        b = self._stored(kept.branch.their_b)[first : first + kept.branch.outer]
        return self._fitted(b, matrix, kept.rank, kept.scale)

    def _fitted(self, stored: Tensor, matrix: str, rank: int, scale: float) -> Tensor:
        """Return an A or a B of that rank, for a branch of that scale, as one of the run's."""
        missing = self._finetune.rank - rank
        if matrix == "a.weight":
            return nn.functional.pad(stored, (0, 0, 0, missing))
        return nn.functional.pad(stored.float() * (scale / self._finetune.scale), (0, missing))

    def _stored(self, name: str) -> Tensor:
        return self._file.get_tensor(name)  # type: ignore[no-any-return]
