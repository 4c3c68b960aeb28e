"""Classification: weights of classes against torch's own, F1 and accuracy against scikit-learn's."""

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from common.objective import ModelInputs
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.objectives.classification import Classification
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.picture_config import ClassificationConfig

CLASSES = 6


def objective(weights: tuple[float, ...] = ()) -> Classification:
    model = TextClassesConfig(classes=CLASSES)
    context = ObjectiveContext(0, 8, 16, 0, bytes, model, CLASSES, class_weights=weights)
    return Classification(ClassificationConfig(), context)


def rows(count: int, seed: int = 0) -> tuple[Tensor, ModelInputs]:
    """Logits and labels; some rows have none, and class 4 neither occurs nor is predicted."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=draw)
    label[label == 4] = -1
    logits = torch.randn(count, CLASSES, generator=draw)
    logits[:, 4] = -100.0
    return logits, ModelInputs(torch.zeros(count, 8), {"label": label})


def test_weights_of_classes_are_those_of_torch() -> None:
    weights = (0.5, 3.0, 0.0, 1.0, 1.0, 7.0)
    logits, inputs = rows(64)
    losses, counts = objective(weights).loss(logits, inputs)
    label = inputs.kwargs["label"]
    expected = torch.nn.functional.cross_entropy(
        logits.double(), label, weight=torch.tensor(weights).double(), ignore_index=-1
    )
    assert float(losses.sum() / counts.sum()) == pytest.approx(float(expected), rel=1e-6)
    with torch.no_grad():
        _, alike = objective(weights).loss(logits, inputs)
    assert alike.tolist() == (label >= 0).float().tolist()


def test_the_scale_of_the_weights_is_of_no_account() -> None:
    logits, inputs = rows(64)
    one, other = (objective((s, 3 * s, s, s, s, s)).loss(logits, inputs) for s in (1.0, 1e-4))
    torch.testing.assert_close(one, other)


def test_figures_are_those_of_scikit_learn_over_all_rows() -> None:
    one = objective()
    batches = [rows(count, seed) for seed, count in enumerate((1, 40, 7, 3))]
    summed = sum(one.measure(*batch) for batch in batches)
    assert isinstance(summed, Tensor)
    figures = ClassificationConfig().figures(
        dict(zip(one.measures, map(tuple, summed.tolist()), strict=True))
    )
    label = torch.cat([inputs.kwargs["label"] for _, inputs in batches])
    predicted = torch.cat([logits.argmax(dim=1) for logits, _ in batches])[label >= 0]
    label = label[label >= 0]
    assert figures["f1"] == pytest.approx(f1_score(label, predicted, average="macro"), rel=1e-12)
    assert figures["top_1"] == pytest.approx(accuracy_score(label, predicted), rel=1e-12)


def test_no_rows_give_no_figures() -> None:
    one = objective()
    figures = ClassificationConfig().figures(dict.fromkeys(one.measures, (0.0, 0.0)))
    assert figures == {"top_1": 0.0, "f1": 0.0}
