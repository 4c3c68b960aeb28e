"""Classification and masked images: inputs and losses against a few lines, masks by sequence number."""

from typing import Any

import pytest
import torch
from torch import Tensor

from data.config import DataConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.build import build_objective
from trainer.objectives.classification import Classification
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.masked_images import MaskedImages
from trainer.objectives.picture_config import ClassificationConfig, MaskedImagesConfig

SIZE = 24


def context(seed: int = 0, **model: Any) -> ObjectiveContext:
    keys: dict[str, Any] = {"image_size": SIZE, "patch_size": 4, "hidden": 32, "heads": 4, "classes": 5}
    return ObjectiveContext(seed, 0, 0, 0, bytes, VisionConfig(**(keys | model)))


def masked(seed: int = 0, registers: int = 0, **keys: Any) -> MaskedImages:
    found = build_objective(MaskedImagesConfig(**keys), context(seed, head="pixels", registers=registers))
    assert isinstance(found, MaskedImages)
    return found


def images(rows: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (rows, 1, SIZE, SIZE, 3), generator=draw, dtype=torch.uint8)


def places(objective: MaskedImages, *numbers: int) -> Tensor:
    return objective.inputs({"image": images(len(numbers))}, numbers).kwargs["places"]


def test_a_mask_is_a_function_of_the_sequence_number() -> None:
    together = places(masked(), 5, 7, 10**12, 6)
    assert torch.equal(together[2:3], places(masked(), 10**12))
    assert torch.equal(together.flip(0), places(masked(), 6, 10**12, 7, 5))
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert not torch.equal(places(masked(seed=1), 5), together[:1])


@pytest.mark.parametrize(("ratio", "square", "count"), [(0.6, 0, 22), (0.25, 8, 8), (0.5, 12, 8 + 10)])
def test_each_picture_has_the_same_number_of_hidden_patches(ratio: float, square: int, count: int) -> None:
    objective = masked(mask_ratio=ratio, mask_patch=square)
    found = places(objective, *range(4000))
    assert found.shape == (4000, count)
    assert bool((found.diff(dim=1) > 0).all())
    seen = torch.zeros(36).scatter_add_(0, found.flatten(), torch.ones(found.numel())) / 4000
    assert float((seen - count / 36).abs().max()) < 0.035  # four standard deviations
    assert float(seen.mean()) == pytest.approx(count / 36, rel=1e-4)
    # Each is hidden as often together with any other, but for those of its own square.
    hidden = torch.zeros(4000, 36).scatter_(1, found, 1.0)
    together = (hidden.T @ hidden) / 4000
    side = (square or 4) // 4
    square_of = torch.arange(36) // 6 // side * 6 + torch.arange(36) % 6 // side
    same = square_of[:, None] == square_of[None]
    assert torch.allclose(together[same], seen[:, None].expand(36, 36)[same])
    squares, chosen = 36 // side**2, count // side**2
    by_chance = chosen * (chosen - 1) / (squares * (squares - 1))
    assert float(together[~same].mean()) == pytest.approx(by_chance, rel=0.01)


@pytest.mark.parametrize(("distance", "normalise"), [("l1", False), ("l2", True)])
def test_the_loss_is_that_of_a_few_lines(distance: str, normalise: bool) -> None:
    objective = masked(distance=distance, normalise_patches=normalise, registers=2)
    image, numbers = images(4), (4, 9, -1, 7)
    length = torch.tensor([1, 1, 1, 0])  # the last one's picture is damaged
    inputs = objective.inputs({"image": image, "length": length}, numbers)
    draw = torch.Generator().manual_seed(3)
    output = inputs.kwargs["targets"] + 0.02 * torch.randn(4, objective.features(inputs), generator=draw)
    losses, counts = objective.loss(output, inputs)
    assert counts.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert inputs.x.shape == (4, 38, 48) and not inputs.x[:, :2].any()
    assert bool((inputs.kwargs["places"][2:] == -1).all()) and not losses[2:].any()
    for row in range(2):
        pixels = (image[row, 0].double() / 255 - 0.5) / 0.5
        total = 0.0
        for number, place in enumerate(inputs.kwargs["places"][row].tolist()):
            top, left = divmod(place - 2, 6)
            patch = pixels[4 * top : 4 * top + 4, 4 * left : 4 * left + 4].permute(2, 0, 1).flatten()
            assert torch.allclose(inputs.x[row, place].double(), patch, atol=1e-6)
            if normalise:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            off = output[row].view(-1, 48)[number].double() - patch
            near = off.square() / 0.02 + 0.005
            l1 = torch.where(off.abs() < 0.01, near, off.abs())
            total += float(l1.mean() if distance == "l1" else off.square().mean())
        assert float(losses[row]) == pytest.approx(total / 22, rel=1e-5)


def test_pixel_means_and_deviations_are_the_models() -> None:
    given = {"pixel_mean": [0.485, 0.456, 0.406], "pixel_std": [0.229, 0.224, 0.225], "patch_size": SIZE}
    objective = build_objective(ClassificationConfig(), context(**given))
    x = objective.inputs({"image": images(1), "label": torch.tensor([0])}, (0,)).x
    mean, std = (torch.tensor(given[key]).double() for key in ("pixel_mean", "pixel_std"))
    expected = ((images(1)[0, 0].double() / 255 - mean) / std).permute(2, 0, 1).flatten()
    assert torch.allclose(x.flatten().double(), expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_is_that_of_a_few_lines(smoothing: float) -> None:
    objective = build_objective(ClassificationConfig(label_smoothing=smoothing), context())
    assert isinstance(objective, Classification)
    label = torch.tensor([2, -1, 0, 4])
    inputs = objective.inputs({"image": images(4), "label": label}, (0, 1, 2, 3))
    output = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    losses, counts = objective.loss(output, inputs)
    logs = output.double().log_softmax(dim=1)
    target = (1 - smoothing) * torch.eye(5).double()[label.clamp(min=0)] + smoothing / 5
    expected = -(logs * target).sum(dim=1) * torch.tensor([1.0, 0, 1, 1])
    assert torch.allclose(losses.double(), expected, rtol=1e-6)
    assert counts.tolist() == [1.0, 0.0, 1.0, 1.0]
    right = sum(int(row.argmax()) == wanted for row, wanted in zip(output, label.tolist()))
    with torch.no_grad():
        evaluated, _ = objective.loss(output, inputs)
    assert torch.allclose(evaluated, -logs[range(4), label.clamp(min=0)].float() * counts, rtol=1e-6)
    assert objective.measure(output, inputs)[0].tolist() == [right, 3.0]
    assert objective.features(inputs) == 5


@pytest.mark.parametrize(("cfg", "model", "message"), [
    (MaskedImagesConfig(mask_patch=6), {}, "objective.mask_patch=6: must be a multiple of the model's patch"),
    (MaskedImagesConfig(mask_patch=16), {}, "that divides its pictures of 24"),
    (MaskedImagesConfig(mask_ratio=0.01), {}, "objective.mask_ratio=0.01: 0 of a picture's 36 squares of 4"),
    (MaskedImagesConfig(mask_patch=24, mask_ratio=0.5), {}, "0 of a picture's 1 squares of 24 pixels"),
    (MaskedImagesConfig(), {"head": "classes"}, "model.head=classes: this objective needs model.head=pixels"),
    (ClassificationConfig(), {}, "model.head=pixels: this objective needs model.head=classes"),
])  # fmt: skip
def test_what_does_not_go_is_one_line(cfg: Any, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        cfg.check(context(**({"head": "pixels"} | model)).model, DataConfig(image_size=24))
    assert message in str(caught.value)
