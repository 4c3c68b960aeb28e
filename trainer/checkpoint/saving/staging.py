"""Where an asynchronous save keeps the state while training goes on: one CPU buffer, kept for all saves of a
run.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from parallel.engine import Chunk

_ALIGN = 64


class Staging:
    """Copies the owned chunks into CPU memory of its own, page-locked where they come from a GPU."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._locked = False

    def copy(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return the owned chunks with their present values. The next call overwrites what this call
        returned.
        """
        owned = [chunk for chunk in chunks if chunk.owned and chunk.tensor.numel()]
        offsets, total = [], 0
        for chunk in owned:
            offsets.append(total)
            total += -(-chunk.tensor.nbytes // _ALIGN) * _ALIGN
        devices = {chunk.tensor.device for chunk in owned if chunk.tensor.is_cuda}
        if self._buffer.nbytes != total:
            self._unlock()
            self._buffer = torch.empty(total, dtype=torch.uint8)
            if devices:
                self._lock(next(iter(devices)))
        staged = []
        for chunk, offset in zip(owned, offsets, strict=True):
            source = chunk.tensor.detach()
            into = self._view(offset, source)
            into.copy_(source, non_blocking=True)
            staged.append(replace(chunk, tensor=into))
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return staged

    def _lock(self, device: torch.device) -> None:
        """Registered, not allocated pinned: that allocator rounds up to a power of two, at worst twice the
        memory. Where the system refuses to lock so much, the copy is slower and still right.
        """
        code = int(torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), self._buffer.nbytes, 0))
        self._locked = code == 0
        if code:
            # CUDA keeps the error and the next kernel's launch would raise it: launch one that may fail.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)

    def _unlock(self) -> None:
        if self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
            self._locked = False

    def _view(self, offset: int, like: Tensor) -> Tensor:
        return self._buffer[offset : offset + like.nbytes].view(like.dtype).view(like.shape)
