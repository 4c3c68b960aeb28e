"""What a rank wrote, as its part of the manifest."""

from collections.abc import Sequence

from parallel.engine import Chunk
from trainer.checkpoint.manifest import StoredChunk, TensorEntry, key_of
from trainer.checkpoint.merge import Part, Share
from trainer.checkpoint.pieces import cuts
from trainer.checkpoint.pieces.files import FileEntry
from trainer.checkpoint.reader import DTYPES
from trainer.checkpoint.vectors import VectorShare

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def described(
    rank: int, names: Sequence[str], groups: Sequence[Sequence[Chunk]], files: dict[str, FileEntry]
) -> Part:
    """Describe what the rank wrote: `groups[i]` into the file `names[i]`; files: name → size and hash."""
    alike: dict[tuple[cuts.Parts, int, int], dict[_Tensor, list[_Written]]] = {}
    listed: list[_Written] = []
    for name, group in zip(names, groups, strict=True):
        for chunk in group:
            whole, shape = tuple(chunk.shape), tuple(chunk.tensor.shape)
            stretch = cuts.Stretch(*chunk.stretch) if chunk.stretch else None
            parts = ((1,),) * len(whole) if shape == whole and not stretch else chunk.cuts
            number = cuts.number_of(parts, whole, chunk.offset, shape, stretch)
            if number is None:
                listed.append((name, chunk))
                continue
            each, first = (stretch.each, stretch.first) if stretch else (0, 0)
            tensor = (chunk.name, dtype_name(chunk), whole, first)
            alike.setdefault((parts, number, each), {}).setdefault(tensor, []).append((name, chunk))
    shares, vectors = [], []
    for (parts, number, each), pieces in sorted(alike.items()):
        whole_pieces = []
        for tensor, blocks in sorted(pieces.items()):
            stretch = cuts.Stretch(tensor[3], each) if each else None
            held = sum(chunk.tensor.numel() for _, chunk in blocks)
            if held == cuts.elements(parts, tensor[2], number, stretch):
                whole_pieces.append(tensor)
            else:
                listed += blocks
        if whole_pieces and each:
            vectors.append(VectorShare(rank, parts, each, number, tuple(whole_pieces)))
        elif whole_pieces:
            shares.append(Share.of(rank, parts, number, tuple(tensor[:3] for tensor in whole_pieces)))
    return Part(files, _listed(listed), tuple(shares), tuple(vectors))


_Tensor = tuple[str, str, tuple[int, ...], int]  # name, dtype, shape, and first element in a vector
_Written = tuple[str, Chunk]  # the file, and the chunk in it


def _listed(pieces: Sequence[_Written]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for name, chunk in pieces:
        stored = StoredChunk((name,), key_of_chunk(chunk), tuple(chunk.tensor.shape), tuple(chunk.offset))
        before = tensors[chunk.name].pieces if chunk.name in tensors else ()
        tensors[chunk.name] = TensorEntry(dtype_name(chunk), tuple(chunk.shape), (*before, stored))
    return tensors


def key_of_chunk(chunk: Chunk) -> str:
    """The entry of a chunk in its file."""
    return key_of(chunk.name, chunk.shape, chunk.offset, chunk.tensor.shape)


def dtype_name(chunk: Chunk) -> str:
    """Safetensors' name of a chunk's dtype. RuntimeError, naming the tensor, where it has none."""
    name = _NAMES.get(chunk.tensor.dtype)
    if name is None:
        raise RuntimeError(
            f"tensor {chunk.name}: {chunk.tensor.dtype} has no place in a checkpoint: {', '.join(DTYPES)}"
        )
    return name
