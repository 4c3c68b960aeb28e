"""The two sides of a row → a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.objective import ModelInputs
from trainer.models.pairs import TextPool


def text_pair_inputs(tensors: Mapping[str, Tensor], pool: TextPool) -> ModelInputs:
    """Return the inputs of a model for rows of two texts, a half each; see `data.packing` views and pair."""
    names = ("positions", "documents")
    kwargs = {name: tensors[name] for name in names} | {
        "weights": text_weights(tensors["length"], tensors["tokens"].shape[1], pool)
    }
    return ModelInputs(tensors["tokens"], kwargs, {"positions": 1, "weights": 2})


def image_text_inputs(tensors: Mapping[str, Tensor], pictures: ModelInputs, pool: TextPool) -> ModelInputs:
    """Return the inputs of a model for pictures with captions, one text a row; see `data.packing` one.

    pictures: the inputs of a model for the pictures alone.
    """
    weights = text_weights(tensors["length"][:, None], tensors["tokens"].shape[1], pool)
    kwargs = {"patches": pictures.x, "documents": tensors["documents"], "weights": weights}
    return ModelInputs(tensors["tokens"], kwargs)


def text_weights(length: Tensor, seq: int, pool: TextPool) -> Tensor:
    """Return the weight of each token of a row in the embeddings of its texts: float32 [rows, texts, seq].

    length: tokens of each text, int64 [rows, texts]; the texts are equal parts of the row. A text of none has
        weights of 0.
    """
    rows, texts = length.shape
    part = seq // texts
    place = torch.arange(part, device=length.device)
    there = place < length[..., None]
    if pool == "mean":
        weight = there / length[..., None].clamp(min=1)
    else:
        wanted = torch.zeros_like(length) if pool == "first" else length - 1
        weight = (there & (place == wanted[..., None])).to(torch.float32)
    whole = weight.new_zeros(rows, texts, texts, part, dtype=torch.float32)
    for text in range(texts):
        whole[:, text, text] = weight[:, text]
    return whole.flatten(2)


def both_sides_there(tensors: Mapping[str, Tensor], sequences: tuple[int, ...], *, texts: bool) -> Tensor:
    """Return whether both sides of a row have something in them, bool [rows]; padding rows have not.

    texts: is a side of each row a text? One without ids has a length of 1, its separator.
    """
    there = torch.tensor(sequences, dtype=torch.int64) >= 0
    if "length" in tensors:
        least = 2 if texts else 1
        there = there & (tensors["length"].cpu().reshape(len(sequences), -1) >= least).all(dim=1)
    return there
