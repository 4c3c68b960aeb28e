"""A Hugging Face folder: its config.json, and which tensor lies where in its safetensors files.

Only headers are read here, so that what is wrong with a folder is known in a moment. No torch, and nothing is
executed: a folder whose weights are pickles is refused.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Dtypes that weights may have → bytes of an element."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LONGEST_HEADER = 100_000_000  # bytes, as the format's own library allows
# What older versions saved beside the weights, and computes anew: causal masks, positions, frequencies.
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias|(^|\.)position_ids|rotary_emb\.inv_freq")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file.

    file: the file's name.
    dtype: as the format names it, such as "BF16".
    shape: of the tensor.
    start: of its bytes in the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int


def is_folder(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder."""
    return (path / CONFIG).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """Return config.json; ValueError, one line, where it is no JSON mapping."""
    return read_json(path / CONFIG)


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return name → place of each weight.

    Raises:
        ValueError: the folder has no safetensors, or a weight has a dtype that no weight has.
        RuntimeError: a file is missing, cut short or not what the index says.
    """
    if (path / INDEX).is_file():
        places = read_json(path / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in places.values()
        ):
            raise ValueError(f"{path / INDEX}: weight_map is no mapping of tensors to files of the folder")
        if (path / WEIGHTS).is_file() and WEIGHTS not in places.values():
            raise ValueError(
                f"{path}: holds {WEIGHTS}, which transformers reads, and {INDEX}, which names other files: "
                "keep one of the two in a copy of the folder"
            )
        tensors: dict[str, StoredTensor] = {}
        for file in sorted(set(places.values())):
            if not (path / file).is_file():
                raise RuntimeError(f"{path / file}: missing, but {INDEX} names it: the folder is not whole")
            tensors |= header(path / file)
        for name, file in places.items():
            if name not in tensors or tensors[name].file != file:
                raise RuntimeError(f"{path / file}: lacks the tensor {name}, which {INDEX} places there")
    elif (path / WEIGHTS).is_file():
        tensors = header(path / WEIGHTS)
    elif any((path / name).is_file() for name in _PICKLES):
        raise ValueError(
            f"{path}: its weights are pickles, which run code when they are loaded: let transformers load "
            "the folder and save it again, as safetensors (save_pretrained)"
        )
    else:
        raise ValueError(f"{path}: holds neither {WEIGHTS} nor {INDEX}")
    found = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{path / tensor.file}: tensor {name} is {tensor.dtype}: weights are {', '.join(DTYPES)}; a "
                "quantised model is not read"
            )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON mapping; ValueError, one line, where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise RuntimeError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping of keys to values")
    return content


def header(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file, and prove that the file is as long as it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        found, end, places = {}, 0, []
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
                raise ValueError
            places.append((start, stop, name))
            if stop - start != prod(shape) * DTYPES.get(
                entry["dtype"], (stop - start) // max(1, prod(shape))
            ):
                raise ValueError
            found[name] = StoredTensor(path.name, entry["dtype"], shape, 8 + length + start)
            end = max(end, 8 + length + stop)
    except OSError as error:
        raise RuntimeError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        raise RuntimeError(f"{path}: not a safetensors file, or cut short in its header") from None
    places.sort()
    for (_, before, one), (start, _, name) in pairwise(places):
        if start < before:
            raise RuntimeError(f"{path}: the tensors {one} and {name} overlap: the file is damaged")
    if size != end:
        raise RuntimeError(f"{path}: {size} bytes, its header describes {end}: cut short or damaged")
    return found
