"""Which attention kernel a device gets."""

import pytest
import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend

from parallel import kernels
from parallel.kernels import Kernels, choose


def test_auto_takes_what_the_device_has() -> None:
    assert choose("auto", None, flash3_installed=True) == Kernels()
    assert choose("auto", (8, 0), flash3_installed=True) == Kernels()
    assert choose("auto", (9, 0), flash3_installed=True) == Kernels(flash3=True)
    assert choose("auto", (9, 0), flash3_installed=False).order[0] == SDPBackend.CUDNN_ATTENTION
    assert choose("auto", (10, 0), flash3_installed=True).order[0] == SDPBackend.CUDNN_ATTENTION
    assert not choose("sdpa", (9, 0), flash3_installed=True).flash3


@pytest.mark.parametrize("capability", [None, (8, 0), (10, 0)])
def test_flash3_is_for_hopper(capability: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=r"Hopper.*set parallel\.attention=auto"):
        choose("flash3", capability, flash3_installed=True)


def test_flash3_must_be_installed() -> None:
    with pytest.raises(ValueError, match="flash_attn_interface"):
        choose("flash3", (9, 0), flash3_installed=False)


def test_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel\.attention=flash2: choose auto, sdpa, flash3"):
        choose("flash2", None, flash3_installed=False)


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps whatever else it knows behind what we name."""
    before = torch._C._get_sdp_priority_order()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_flash3_installed", lambda: False)
    try:
        kernels.use("auto", torch.device("cuda"))
        after = torch._C._get_sdp_priority_order()
        assert after[0] == int(SDPBackend.CUDNN_ATTENTION) and sorted(after) == sorted(before)
    finally:
        torch._C._set_sdp_priority_order(before)
    activated: list[str] = []
    monkeypatch.setattr(kernels, "_flash3_installed", lambda: True)
    monkeypatch.setattr(attention, "activate_flash_attention_impl", activated.append)
    kernels.use("auto", torch.device("cuda"))
    assert activated == ["FA3"]
    assert torch._C._get_sdp_priority_order() == before
    kernels.use("auto", torch.device("cpu"))
    assert activated == ["FA3"]
