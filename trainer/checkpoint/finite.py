"""Whether bytes that are about to be saved hold only finite numbers. No torch here.

A float whose exponent is all ones is a NaN or an infinity, and as an integer it is the largest of its sign.
So two maxima suffice, one of signed and one of unsigned integers: exact in every format, without a temporary.
"""

import numpy as np

# safetensors dtype → bytes an element, and the least bits of a positive number that is not finite.
_LEAST: dict[str, tuple[int, int]] = {
    "F64": (8, 0x7FF0_0000_0000_0000),
    "F32": (4, 0x7F80_0000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E4M3": (1, 0x7F),  # without infinities
    "F8_E5M2": (1, 0x7C),
}


def is_finite(data: memoryview, dtype: str) -> bool:
    """Whether no element of `data`, whole elements of safetensors dtype `dtype`, is a NaN or an infinity."""
    if dtype not in _LEAST:
        return True
    size, least = _LEAST[dtype]
    sign = 1 << (8 * size - 1)
    bits = np.frombuffer(data, dtype=f"u{size}")
    return bool(bits.view(f"i{size}").max(initial=0) < least and bits.max(initial=0) < (sign | least))
