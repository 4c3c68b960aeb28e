"""What the tensors of this process hold in memory."""

import gc
from collections.abc import Iterable

import torch
from torch import Tensor


def live_bytes(gradients: Iterable[Tensor | None] = ()) -> int:
    """Of every tensor's memory in this process, once each. `gradients`: of parameters, which Python's list of
    objects may lack.
    """
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter)]
    tensors += [one for one in gradients if one is not None]
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if not one.is_meta
    }
    return sum(storages.values())
