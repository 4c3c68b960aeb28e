"""WebDataset tars made by others, read strictly: their samples as bytes, of the members that are safe to
read.
"""

import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data import scan
from data.sources import InputFile

IMAGES = ("jpg", "jpeg", "png", "webp")
_READ = ("txt", "text", "caption", "json", "npy", "cls", *IMAGES)


def samples(file: InputFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, extension → bytes). Members that could run code when decoded (pickles, `.pt`) are never opened.

    A remote tar is fetched whole into a temporary file first. Raises RuntimeError or ValueError from
    `data.scan`.
    """
    if "://" not in file.path:
        yield from _mapped(Path(file.path), file.path)
        return
    from data.readers import open_bytes

    with tempfile.NamedTemporaryFile() as copy, open_bytes(file.path) as remote:
        shutil.copyfileobj(remote, copy)
        copy.flush()
        yield from _mapped(Path(copy.name), file.path)


def _mapped(path: Path, where: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    view = scan.map_file(path)
    for sample in scan.samples(view, where):
        yield (
            sample.key,
            {
                extension: bytes(view[member.offset : member.offset + member.size])
                for extension, member in sample.members.items()
                if extension in _READ
            },
        )


def array(raw: bytes, where: str) -> NDArray[np.integer]:
    """The token ids of a `.npy` member: 1-D, integers; a pickled array is refused."""
    try:
        ids = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except ValueError as error:
        raise RuntimeError(f"{where}: .npy cannot be read: {error}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RuntimeError(f"{where}: .npy is {ids.dtype}{list(ids.shape)}, not a 1-D array of token ids")
    return ids
