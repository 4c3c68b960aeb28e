"""The number formats that a run may compute in."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
COMPUTE_DTYPE: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
