"""Which attention kernel scaled_dot_product_attention runs: a choice of the process, which no model sees."""

import importlib.util
from dataclasses import dataclass

import torch
from torch.nn import attention
from torch.nn.attention import SDPBackend

CHOICES = ("auto", "sdpa", "flash3")
# FlashAttention-2 is written for Ampere and reaches a third of a Hopper's rate (Shah et al. 2024,
# arXiv:2407.08608, section 1); cuDNN's kernels are the device's own.
_CUDNN_FIRST = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


@dataclass(frozen=True)
class Kernels:
    """flash3: FlashAttention-3 takes FlashAttention-2's place. order: what is tried first; empty: torch's."""

    flash3: bool = False
    order: tuple[SDPBackend, ...] = ()


def choose(wanted: str, capability: tuple[int, int] | None, *, flash3_installed: bool) -> Kernels:
    """`parallel.attention` → kernels for a device. capability: of a CUDA device, None for a CPU.

    flash3 needs exactly Hopper: FlashAttention-3 is built on its instructions. ValueError where it is asked
    for and cannot be had.
    """
    if wanted not in CHOICES:
        raise ValueError(f"parallel.attention={wanted}: choose {', '.join(CHOICES)}")
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
    if hopper and flash3_installed and wanted != "sdpa":
        return Kernels(flash3=True)
    if capability is not None and capability[0] >= 9:
        return Kernels(order=_CUDNN_FIRST)
    return Kernels()


def use(wanted: str, device: torch.device) -> Kernels:
    """Choose for `device` and tell torch, for the whole process. Document masks run by FlexAttention on CUDA,
    whatever is chosen here.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernels = choose(wanted, capability, flash3_installed=_flash3_installed())
    if kernels.flash3:
        attention.activate_flash_attention_impl("FA3")
    if kernels.order:
        known = torch._C._get_sdp_priority_order()  # sdpa_kernel sets it for a `with` only
        first = [int(backend) for backend in kernels.order]  # type: ignore[call-overload]
        torch._C._set_sdp_priority_order([*first, *(other for other in known if other not in first)])
    return kernels


def _flash3_installed() -> bool:
    implementations = getattr(attention, "list_flash_attention_impls", list)
    return "FA3" in implementations() and importlib.util.find_spec("flash_attn_interface") is not None
