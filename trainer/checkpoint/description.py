"""What a rank wrote, as its part of the manifest."""

from collections.abc import Sequence

from parallel.engine import Chunk
from trainer.checkpoint.manifest import StoredChunk, TensorEntry, key_of
from trainer.checkpoint.merge import Part, Share
from trainer.checkpoint.pieces import cuts
from trainer.checkpoint.pieces.files import FileEntry
from trainer.checkpoint.reader import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def described(
    rank: int, names: Sequence[str], groups: Sequence[Sequence[Chunk]], files: dict[str, FileEntry]
) -> Part:
    """Describe what the rank wrote: `groups[i]` into the file `names[i]`; files: name → size and hash."""
    alike: dict[tuple[cuts.Parts, int], dict[tuple[str, str, tuple[int, ...]], list[_Written]]] = {}
    listed: list[_Written] = []
    for name, group in zip(names, groups, strict=True):
        for chunk in group:
            whole, shape = tuple(chunk.shape), tuple(chunk.tensor.shape)
            parts = ((1,),) * len(whole) if shape == whole else chunk.cuts
            number = cuts.number_of(parts, whole, chunk.offset, shape)
            if number is None:
                listed.append((name, chunk))
                continue
            tensor = (chunk.name, dtype_name(chunk), whole)
            alike.setdefault((parts, number), {}).setdefault(tensor, []).append((name, chunk))
    shares = []
    for (parts, number), pieces in sorted(alike.items()):
        whole_pieces = []
        for tensor, blocks in sorted(pieces.items()):
            if sum(chunk.tensor.numel() for _, chunk in blocks) == cuts.elements(parts, tensor[2], number):
                whole_pieces.append(tensor)
            else:
                listed += blocks
        if whole_pieces:
            shares.append(Share.of(rank, parts, number, tuple(whole_pieces)))
    return Part(files, _listed(listed), tuple(shares))


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
