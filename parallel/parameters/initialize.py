"""First values, whatever the layout: each parameter is drawn whole from (seed, name), then cut. And which
parameters are trained.
"""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.parameters.sharded_parameter import ShardedParameter


@torch.no_grad()
def initialize(parameters: Iterable[ShardedParameter], plan: ModelPlan, seed: int) -> None:
    """Fill this rank's part of each parameter. One whole parameter exists at a time."""
    for parameter in parameters:
        whole = draw(parameter.name, parameter.shape, plan, seed, parameter.tensor.device)
        parameter.tensor.copy_(parameter.part_of(whole))


def draw(name: str, shape: tuple[int, ...], plan: ModelPlan, seed: int, device: torch.device) -> Tensor:
    """Draw the whole parameter, float32, as the model's plan says."""
    how = plan.init(name, shape)
    whole = torch.empty(shape, device=device)
    if how.kind == "ones":
        return whole.fill_(1.0)
    if how.kind == "zeros":
        return whole.zero_()
    if how.kind == "constant":
        return whole.fill_(how.value)
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
    if how.kind == "normal":
        return whole.normal_(0.0, how.std, generator=generator)
    if how.kind == "uniform":
        bound = how.std * math.sqrt(3)
        return whole.uniform_(-bound, bound, generator=generator)
    assert how.kind == "trunc_normal", f"{name}: no such initialisation: {how.kind}"
    return nn.init.trunc_normal_(whole, std=how.std, a=-3 * how.std, b=3 * how.std, generator=generator)


def freeze(model: nn.Module, plan: ModelPlan) -> None:
    """Take the gradient from every parameter that the plan does not train. Tied parameters have one name."""
    canonical = {alias: name for name, alias in plan.tied}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(plan.trained(canonical.get(name, name)))


def to_device(model: nn.Module, device: torch.device) -> None:
    """Allocate undefined memory on `device` for the parameters of a model on the meta device."""
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        model.to_empty(device=device)  # allocates the local part of FSDP's parameters
        return
    # torch's way imports sympy to copy a shape: a third of a second of every start.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(memory, parameter.requires_grad))
