"""Which attention kernel a device gets."""

import pytest
import torch
from torch.nn import attention

from parallel.transforms import kernels
from parallel.transforms.kernels import choose


def test_auto_takes_what_the_device_has() -> None:
    assert choose("auto", (9, 0), flash3_installed=True)
    assert not choose("auto", (9, 0), flash3_installed=False)
    assert not choose("sdpa", (9, 0), flash3_installed=True)
    for other in (None, (8, 0), (10, 0)):
        assert not choose("auto", other, flash3_installed=True)


@pytest.mark.parametrize("capability", [None, (8, 0), (10, 0)])
def test_flash3_is_for_hopper(capability: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=r"Hopper.*set parallel\.attention=auto"):
        choose("flash3", capability, flash3_installed=True)


def test_flash3_must_be_installed() -> None:
    with pytest.raises(ValueError, match="flash_attn_interface"):
        choose("flash3", (9, 0), flash3_installed=False)


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention-3 runs only where cuDNN, which torch prefers on a Hopper, is not asked first; and an
    engine built after it in the same process has torch's own order again.
    """
    active: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_flash3_installed", lambda: True)
    monkeypatch.setattr(attention, "activate_flash_attention_impl", active.append)
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: active[-1] if active else None)
    monkeypatch.setattr(attention, "restore_flash_attention_impl", active.clear)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        kernels.use("auto", torch.device("cuda"))
        assert active == ["FA3"] and not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        kernels.use("sdpa", torch.device("cuda"))
    assert active == [] and torch.backends.cuda.cudnn_sdp_enabled()
