"""Which attention kernel scaled_dot_product_attention runs: a choice of the process, which no model sees."""

import importlib.util

import torch
from torch.nn import attention

from parallel.config import Attention


def choose(wanted: Attention, capability: tuple[int, int] | None, *, flash3_installed: bool) -> bool:
    """`parallel.attention` → whether FlashAttention-3 runs. If not, what torch prefers on the device: on
    Hopper and Blackwell cuDNN's kernels where they are new enough, elsewhere FlashAttention-2.

    capability: of a CUDA device, None for a CPU. flash3 needs exactly Hopper: FlashAttention-3 is built on
    its instructions. ValueError where it is asked for and cannot be had.
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
    """Choose for `device` and tell torch, for the whole process. Document masks run by FlexAttention on CUDA,
    whatever is chosen here.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    flash3 = choose(wanted, capability, flash3_installed=_flash3_installed())
    # FlashAttention-3 takes FlashAttention-2's place, and on a Hopper torch asks cuDNN before either.
    torch.backends.cuda.enable_cudnn_sdp(not flash3)
    if flash3:
        attention.activate_flash_attention_impl("FA3")
    elif getattr(attention, "current_flash_attention_impl", str)():
        attention.restore_flash_attention_impl()


def _flash3_installed() -> bool:
    implementations = getattr(attention, "list_flash_attention_impls", list)
    return "FA3" in implementations() and importlib.util.find_spec("flash_attn_interface") is not None
