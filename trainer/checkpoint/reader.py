"""Maps the safetensors files of a checkpoint into memory: a stored chunk is a view of the file, and only what
is copied is read.
"""

import json
import struct
import sys
import threading
import warnings
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from common.mapped_file import MappedFile
from trainer.checkpoint.manifest import Manifest, StoredChunk, read_manifest
from trainer.checkpoint.pieces.files import DamagedError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Torch warns of read-only memory under a tensor: nothing writes to these views.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)

assert sys.byteorder == "little", (
    "the format is little-endian, and so must the memory be that is mapped and written"
)


class Reader:
    """Maps the safetensors files of one committed folder; only the pages that are copied from are read."""

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or read_manifest(folder)
        self._files: dict[str, tuple[MappedFile, int, dict[str, dict]]] = {}
        self._lock = threading.Lock()

    def open(self, name: str) -> None:
        """Map file `name`. DamagedError where it is missing or is not safetensors."""
        path = self.folder / name
        try:
            file = MappedFile(path)
            data, size = file.view, len(file.view)
            if size != self.manifest.files[name].bytes:
                raise DamagedError(f"{path}: {size} bytes, {self.manifest.files[name].bytes} were written")
            (length,) = struct.unpack_from("<Q", data)
            self._files[name] = file, 8 + length, json.loads(bytes(data[8 : 8 + length]))
        except OSError as error:
            raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, struct.error):
            raise DamagedError(f"{path}: not a safetensors file") from None

    def read(self, name: str, stored: StoredChunk) -> Tensor:
        """Return one stored chunk of tensor `name`, aliasing the mapped file: copy from it, never write."""
        where = self._find(name, stored)
        file, base, header = self._files[where]
        data = file.view
        entry, dtype = header.get(stored.key), self.manifest.tensors[name].dtype
        if entry is None or entry["dtype"] != dtype or tuple(entry["shape"]) != stored.shape:
            raise DamagedError(
                f"{self.folder / where}: entry {stored.key} is not what the manifest says: {entry}"
            )
        start, count = base + entry["data_offsets"][0], prod(stored.shape)
        if start + count * DTYPES[dtype].itemsize > len(data):
            raise DamagedError(f"{self.folder / where}: entry {stored.key} leaves the file")
        return torch.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=start).view(stored.shape)

    def _find(self, name: str, stored: StoredChunk) -> str:
        """Return the file of the rank that has the entry, mapped; one of them where none has it."""
        if not stored.files:
            raise DamagedError(f"{self.folder}: no file of tensor {name} at {list(stored.offset)}")
        for file in stored.files:
            with self._lock:
                if file not in self._files:
                    self.open(file)
            if stored.key in self._files[file][2]:
                break
        return file

    def forget(self) -> None:
        """Give back the memory of what was read so far: the files stay mapped."""
        for file, _, _ in self._files.values():
            file.forget()

    def check(self) -> None:
        """RuntimeError where a file was written to since it was mapped: what was copied may be anything."""
        for name, (file, _, _) in self._files.items():
            if file.version():
                raise RuntimeError(
                    f"{self.folder / name} was written to while it was read: stop the program that writes; "
                    "the same command verifies the checkpoint anew"
                )
