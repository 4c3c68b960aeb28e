"""First values, whatever the layout: each parameter is drawn whole from (seed, name), then cut."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.model_plan import ModelPlan
from parallel.transforms.pieces import Piece


@torch.no_grad()
def initialize(pieces: Iterable[Piece], plan: ModelPlan, seed: int) -> None:
    """Fill the pieces' memory. One whole parameter exists at a time."""
    for piece in pieces:
        piece.tensor.copy_(piece.keep(draw(piece.name, piece.shape, plan, seed, piece.tensor.device)))


def draw(name: str, shape: tuple[int, ...], plan: ModelPlan, seed: int, device: torch.device) -> Tensor:
    """The whole parameter, float32, as the model's plan says it is drawn."""
    how = plan.init(name, shape)
    whole = torch.empty(shape, device=device)
    if how.kind == "ones":
        return whole.fill_(1.0)
    if how.kind == "zeros":
        return whole.zero_()
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
    if how.kind == "normal":
        return whole.normal_(0.0, how.std, generator=generator)
    assert how.kind == "trunc_normal", f"{name}: no such initialisation: {how.kind}"
    return nn.init.trunc_normal_(whole, std=how.std, a=-3 * how.std, b=3 * how.std, generator=generator)


def to_device(model: nn.Module, device: torch.device) -> None:
    """Give parameters that are on the meta device undefined memory on `device`."""
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        model.to_empty(device=device)  # sharded ones know how
        return
    # torch's way imports sympy to copy a shape: a third of a second of every start.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(memory, parameter.requires_grad))
