"""Zero-shot classification of pictures: which class's captions are nearest to a picture (Radford et al. 2021,
arXiv:2103.00020, section 3.1)?
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.files import read_json_lines
from data.stream.batch import Batch
from data.stream.heldout import HeldoutLoader
from trainer.evaluate.calibration import Calibration, calibrate
from trainer.evaluate.labelled import Outputs, read_set
from trainer.evaluation.scoring import BATCHES
from trainer.models.pairs import LEARNT_COLUMNS
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.trained.on_ranks import TrainedRun

CLASS = "{class}"


@dataclass(frozen=True)
class ImageClasses:
    """How a model classifies pictures by captions.

    pictures, classes: how many there are.
    accuracy: share of the pictures whose nearest class is their own.
    calibration: of the softmax of the cosines times the learnt scale.
    """

    pictures: int
    classes: int
    accuracy: float
    calibration: Calibration

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        own = {name: value for name, value in vars(self).items() if name != "calibration"}
        return own | self.calibration.record()


def read_prompts(path: str | Path, classes: Sequence[str]) -> list[list[str]]:
    """Read the captions of each class, a JSON object a line:

        {"template": "a picture of a {class}"}                  of every class
        {"class": "cat", "prompts": ["a cat", "a kitten"]}      of one class, instead of the templates

    ValueError, one line with the file and the line, where it is anything else, or a class has no caption.
    """
    own: dict[str, list[str]] = {}
    known = dict.fromkeys(classes)
    for name, captions in read_json_lines(path, lambda entry: [_read_line(entry, known)]):
        own.setdefault(name, []).extend(captions)
    templates = own.pop(CLASS, [])
    found = [own.get(name) or [one.replace(CLASS, name) for one in templates] for name in classes]
    without = [name for name, prompts in zip(classes, found) if not prompts]
    if without:
        raise ValueError(f"{path}: class {without[0]!r} has no caption: give its prompts, or a template")
    return found


def _read_line(entry: Any, classes: Collection[str]) -> tuple[str, list[str]]:
    """Return (class, its captions); of a template (`CLASS`, it)."""
    if isinstance(entry, dict) and isinstance(template := entry.get("template"), str):
        if CLASS not in template:
            raise ValueError(f"the template {template!r} has no {CLASS}")
        return CLASS, [template]
    if not isinstance(entry, dict) or not {"class", "prompts"} <= entry.keys():
        raise ValueError('needs an object with "template", or with "class" and "prompts"')
    name, prompts = entry["class"], entry["prompts"]
    if name not in classes:
        more = " …" if len(classes) > 20 else ""
        raise ValueError(f"there is no class {name!r}: the corpus has {', '.join([*classes][:20])}{more}")
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f'the "prompts" of class {name!r} are not a list of texts')
    return name, prompts


def classify(
    trained: TrainedRun, heldout: HeldoutLoader, wanted: Outputs, captions: Sequence[Sequence[str]]
) -> ImageClasses:
    """Classify the labelled pictures of a set. Collective: every rank has the same.

    wanted: reads the embeddings: text, picture, learnt numbers.
    captions: of each class.
    """
    model = trained.cfg.model
    assert isinstance(model, ImageTextConfig)
    width = model.embedding
    rows, labels = read_set(trained, heldout, wanted)
    pictures = F.normalize(rows[:, width : 2 * width], dim=1)
    prompts = [caption for own in captions for caption in own]
    texts = F.normalize(_embed_texts(trained, wanted, prompts)[:, :width], dim=1)
    parts = texts.split([len(own) for own in captions])
    classes = F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=1)
    scale = rows[:, 2 * width].mean().exp() if LEARNT_COLUMNS[model.learnt] else torch.ones(())
    shares = (scale * pictures @ classes.T).double().softmax(dim=1).numpy()
    right = shares.argmax(axis=1) == labels
    return ImageClasses(len(labels), len(captions), float(right.mean()), calibrate(shares, labels))


def _embed_texts(trained: TrainedRun, wanted: Outputs, texts: Sequence[str]) -> Tensor:
    """Outputs of rows with these texts, beside black pictures: float32 [texts, columns]. Collective."""
    engine, rows = trained.engine, trained.cfg.train.micro_batch
    seq_len, size = trained.cfg.data.seq_len, trained.cfg.data.image_size
    at_once, found = rows * engine.data_ranks, []
    firsts = list(range(0, len(texts), at_once))
    for begin in range(0, len(firsts), BATCHES * trained.layout.pp):
        batches = []
        for first in firsts[begin : begin + BATCHES * trained.layout.pp]:
            mine = texts[first + engine.data_rank * rows :][:rows]
            tokens = torch.full((rows, seq_len), trained.texts.separator)
            length = torch.zeros(rows, dtype=torch.int64)
            for row, text in enumerate(mine):
                ids = trained.texts.document(text)[:seq_len]
                tokens[row, : len(ids)], length[row] = torch.tensor(ids), len(ids)
            padding = torch.arange(seq_len) >= length[:, None]
            image = torch.zeros(rows, 1, size, size, 3, dtype=torch.uint8)
            tensors = {"tokens": tokens, "length": length, "documents": padding.long(), "image": image}
            batches.append(Batch(tensors, (*range(len(mine)), *[-1] * (rows - len(mine)))))
        found.append(engine.rows(batches, wanted).transpose(0, 1).flatten(0, 2))
    return torch.cat(found)[: len(texts)]
