"""A user's model that offers something and lacks what goes with it: one line before any rank starts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from data.config import DataConfig, Source
from trainer.config import checks
from trainer.config.run_config import RunConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.pictures import Pictures
from trainer.objectives.contrastive_config import ContrastiveConfig
from trainer.objectives.picture_config import ClassificationConfig, MaskedImagesConfig


@dataclass
class Own(DecoderConfig):
    offers: ClassVar[frozenset[str]] = frozenset({"classes", "pixels", "embedding"})


@dataclass
class WholePictures(Own):
    def pictures(self) -> Pictures:
        return Pictures(32)


TEXTS = DataConfig([Source("x")], packing="one", seq_len=8)
PICTURES = DataConfig([Source("x")], packing="one", seq_len=8, image_size=32)


@pytest.mark.parametrize(("model", "objective", "data", "message"), [
    (Own, ClassificationConfig(), TEXTS, "Own offers 'classes' and has no attribute `classes`"),
    (WholePictures, ClassificationConfig(), PICTURES, "offers 'classes' and has no attribute `classes`"),
    (Own, MaskedImagesConfig(), TEXTS, "Own offers 'pixels' and has no method `pictures`"),
    (WholePictures, MaskedImagesConfig(), PICTURES, "has no method `pictures` that gives patches"),
    (Own, ContrastiveConfig(), TEXTS, "Own offers 'embedding' and has no method `pictures`, nor attributes"),
])  # fmt: skip
def test_what_it_lacks_is_named(model: Any, objective: Any, data: DataConfig, message: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.kind=decoder: [^\n]*$") as caught:
        checks.check(RunConfig("run", model(), data, objective=objective))
    assert message in str(caught.value)


def test_pictures_that_no_model_takes_are_refused() -> None:
    """They would be decoded for nothing, and documents without one left out."""
    with pytest.raises(ValueError, match=r"^data\.image_size=32: model\.kind=decoder takes no pictures"):
        checks.check(RunConfig("run", DecoderConfig(), PICTURES))
    checks.check(RunConfig("run", DecoderConfig(), TEXTS))
