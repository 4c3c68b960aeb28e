"""A Hugging Face folder as a source of weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from common.mapped_file import MappedFile
from trainer.checkpoint.folder import hash_file
from trainer.checkpoint.reader import DTYPES
from trainer.first_weights.source import blocks
from trainer.huggingface import choose, folder
from trainer.huggingface.place import place
from trainer.ranks import Ranks


class HuggingFaceSource:
    """The weights of a Hugging Face folder; see `WeightSource`.

    Raises:
        ValueError: its architecture, a key of its config.json or a dtype is not supported; or it has two
            tables of different numbers where config.json ties them.
        RuntimeError: a file is missing or damaged, or a tensor has not the shape that config.json asks for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.family, self.model = choose.of_folder(path)
        self._stored = folder.read_tensors(path)
        self._mapped, self._names = place(self.family, self.model, self._stored, path)
        self._files: dict[str, MappedFile] = {}
        for first, *others in self._names.values():
            for other in others:
                self._check_equal(first, other)

    @property
    def where(self) -> str:
        return str(self._path)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        return {name: one.shape for name, one in self._mapped.items()}

    @cached_property
    def besides(self) -> list[str]:
        mapped = (*self.family.mapped(self.model), *self.family.also(self.model))
        known = {name for one in mapped for name in self.family.known_as(one.theirs)}
        return sorted(self._stored.keys() - known)

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        one = self._mapped[name]
        whole = self._tensor(self._names[one.theirs][0])
        view = whole.mT if one.transposed else whole.view(one.rows, *one.shape[1:])
        for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
            view = view.narrow(dim, start + (one.first if dim == 0 else 0), length)
        return view

    def forget(self) -> None:
        for file in self._files.values():
            file.forget()

    def check(self) -> None:
        for name, file in self._files.items():
            if file.version():
                raise RuntimeError(f"{self._path / name} was written to while it was read: start again")

    def digest(self, ranks: Ranks) -> str:
        names = [folder.CONFIG, *sorted({stored.file for stored in self._stored.values()})]
        mine = ranks.together(
            lambda: {name: hash_file(self._path / name) for name in names[ranks.rank :: ranks.world]}
        )
        found = {name: value for part in ranks.gather(mine) for name, value in part.items()}
        return xxhash.xxh3_128_hexdigest("".join(f"{found[name]} {name}\n" for name in names).encode())

    def _check_equal(self, one: str, other: str) -> None:
        first, second = self._tensor(one), self._tensor(other)
        for rows, _, _ in blocks(first.shape, [0] * first.ndim):
            if not torch.equal(first[rows].float(), second[rows].float()):
                tied = other in self.family.aliases.values()
                says = f"{folder.CONFIG} {'ties' if tied else 'describes'} them as one"
                remedy = "set tie_word_embeddings to false if the model was trained with both, or " * tied
                raise ValueError(
                    f"{self._path}: tensors {one} and {other} differ, and {says}: in a copy of the folder "
                    f"{remedy}leave the wrong one out"
                )
            self.forget()

    def _tensor(self, name: str) -> Tensor:
        stored = self._stored[name]
        if stored.file not in self._files:
            self._files[stored.file] = MappedFile(self._path / stored.file)
        view = self._files[stored.file].view
        count = prod(stored.shape)
        dtype = DTYPES[stored.dtype]
        if stored.start % dtype.itemsize:  # a file that was not written by the format's own library
            data = bytearray(view[stored.start : stored.start + count * dtype.itemsize])
            return torch.frombuffer(data, dtype=dtype).view(stored.shape)
        flat = torch.frombuffer(view, dtype=dtype, count=count, offset=stored.start)
        return flat.view(stored.shape)
