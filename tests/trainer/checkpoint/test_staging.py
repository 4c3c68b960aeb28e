"""Page-locking of the memory that an asynchronous save copies into, by a stand-in for CUDA's runtime."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainer.checkpoint.saving.staging import Staging


class Runtime:
    """Answers `code`, as an enum that is true whatever it says: pybind's are."""

    def __init__(self, code: int) -> None:
        self.code, self.calls = code, []  # type: ignore[var-annotated]

    def __int__(self) -> int:
        return self.code

    def cudaHostRegister(self, address: int, size: int, flags: int) -> "Runtime":
        self.calls.append(("lock", address, size))
        return self

    def cudaHostUnregister(self, address: int) -> "Runtime":
        self.calls.append(("unlock", address))
        return self


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    calls: list[Any] = []

    def zeros(*size: int, device: Any) -> None:
        calls.append(device)
        raise RuntimeError("CUDA error: invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", zeros)
        yield calls


def test_a_refusal_is_not_left_for_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch, launched: list[Any]
) -> None:
    runtime = Runtime(1)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    staging = Staging()
    staging._lock(torch.device("cuda"))
    assert launched == [torch.device("cuda")]
    staging._unlock()
    assert [call[0] for call in runtime.calls] == ["lock"], "nothing was locked"


def test_what_is_locked_is_unlocked_once(monkeypatch: pytest.MonkeyPatch, launched: list[Any]) -> None:
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    staging = Staging()
    staging._lock(torch.device("cuda"))
    for _ in range(2):
        staging._unlock()
    address = staging._buffer.data_ptr()
    assert runtime.calls == [("lock", address, 0), ("unlock", address)] and launched == []
