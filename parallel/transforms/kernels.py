"""Which kernel scaled_dot_product_attention runs: chosen for the process; models are not changed."""

import importlib.util

import torch
from torch.nn import attention

from parallel.config import Attention


def choose(wanted: Attention, capability: tuple[int, int] | None, *, flash3_installed: bool) -> bool:
    """Return whether FlashAttention-3 runs. If not, torch chooses: on Hopper and Blackwell cuDNN's kernels
    where they are new enough, elsewhere FlashAttention-2.

    wanted: `parallel.attention`. ValueError where flash3 is wanted and not possible: it uses instructions
        that only Hopper has.
    capability: compute capability of a CUDA device; None for a CPU.
    flash3_installed: whether the module is there, and torch can use it.
    """
    hopper = capability is not None and capability[0] == 9
    if wanted == "flash3" and not hopper:
        raise ValueError(
            "parallel.attention=flash3 runs on Hopper GPUs (compute capability 9.0) only: "
            "set parallel.attention=auto"
        )
    if wanted == "flash3" and not flash3_installed:
        raise ValueError(
            "parallel.attention=flash3 needs the module flash_attn_interface (FlashAttention's folder "
            "hopper/) and a torch that can use it: install it, or set parallel.attention=auto"
        )
    return hopper and flash3_installed and wanted != "sdpa"


def use(wanted: Attention, device: torch.device) -> None:
    """Choose for `device` and set torch's options. On CUDA, document masks always use FlexAttention."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    flash3 = choose(wanted, capability, flash3_installed=_flash3_installed())
    # FlashAttention-3 replaces FlashAttention-2, and on Hopper torch prefers cuDNN to both.
    torch.backends.cuda.enable_cudnn_sdp(not flash3)
    if flash3:
        attention.activate_flash_attention_impl("FA3")
    elif getattr(attention, "current_flash_attention_impl", str)():
        attention.restore_flash_attention_impl()


def _flash3_installed() -> bool:
    implementations = getattr(attention, "list_flash_attention_impls", list)
    return "FA3" in implementations() and importlib.util.find_spec("flash_attn_interface") is not None
