"""Pictures by captions: the towers' cosines, one picture and one caption at a time; prompts; mistakes."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.evaluate.examination import Asked, examine
from trainer.evaluate.images import read_prompts
from trainer.objectives.pictures import picture_inputs
from trainer.trained.trained_model import load_newest
from whole_runs import train_here, write_config

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
MODEL: dict[str, Any] = {
    "kind": "image_text",
    "vocab": 288,
    "embedding": 16,
    "learnt": "scale",
    "text": {"layers": 1, "hidden": 32, "heads": 2, "max_positions": 16},
    "image": {"image_size": 8, "patch_size": 4, "layers": 1, "hidden": 32, "heads": 2},
}


def make_pictures(folder: Path) -> Path:
    from data.prepare.prepare import prepare
    from data.prepare.recipe import Recipe

    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (own := folder / "pictures" / name).mkdir(parents=True)
        (loose := folder / "loose" / name).mkdir(parents=True)
        with tarfile.open(own / "some.tar", "w") as tar:
            for number in range(24):
                pixels = np.clip(np.array(colour) + draw.integers(-15, 15, (8, 8, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(raw := io.BytesIO(), "png")
                (loose / f"{number}.png").write_bytes(raw.getvalue())
                for suffix, data in (("png", raw.getvalue()), ("txt", f"a {name} one".encode())):
                    entry = tarfile.TarInfo(f"{name}{number}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    prepare(
        [str(folder / "pictures")],
        folder / "corpus",
        tokenizer="bytes",
        heldout=0.25,
        workers=1,
        progress=False,
        recipe=Recipe(label_folder=1),
    )
    return folder / "corpus"


def test_the_nearest_captions_class_is_the_pictures(tmp_path: Path) -> None:
    corpus = make_pictures(tmp_path)
    config = write_config(
        tmp_path,
        corpus,
        model=MODEL,
        objective={"kind": "clip"},
        data__seq_len=16,
        data__packing="one",
        data__image_size=8,
        data__ledger=False,
        train={"steps": 30, "global_batch": 12, "micro_batch": 12},
        optim={"lr": 3e-3, "warmup_steps": 2},
    )
    assert train_here(config)
    lines = [{"template": "a {class} one"}, {"class": "red", "prompts": ["a red one", "red"]}]
    (prompts := tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = Asked(images={side: str(corpus / side) for side in ("train", "heldout")}, prompts=str(prompts))
    overrides = ["train.micro_batch=5"]
    found = examine(tmp_path / "run", overrides, Runtime(0, 1, 0, torch.device("cpu")), asked, step=None)
    figures = list(found["images"].values())
    cfg = reading.load(tmp_path / "run")
    trained = load_newest(cfg, tmp_path / "run")
    model: Any = trained.model

    def text(caption: str) -> torch.Tensor:
        """Without padding."""
        ids = torch.tensor([[trained.separator, *trained.tokenizer.encode(caption).ids]])
        weights = torch.zeros(1, 1, ids.shape[1])
        weights[0, 0, -1] = 1.0  # pool: the last token
        with torch.no_grad():
            return F.normalize(model.text(ids, torch.zeros_like(ids), weights)[0, :16], dim=0)

    names = sorted(COLOURS)
    classes = {name: F.normalize(text(f"a {name} one"), dim=0) for name in names}
    classes["red"] = F.normalize(text("a red one") + text("red"), dim=0)
    right = []
    for name in names:
        for number in range(24):
            raw = np.array(Image.open(tmp_path / "loose" / name / f"{number}.png"))
            patches = picture_inputs(torch.from_numpy(raw)[None, None], cfg.model.pictures()).x  # type: ignore[attr-defined]
            with torch.no_grad():
                picture = F.normalize(model.image(patches)[0, :16], dim=0)
            right.append(max(names, key=lambda one: float(picture @ classes[one])) == name)
    assert sum(one["pictures"] for one in figures) == 72 and figures[0]["classes"] == 3
    assert sum(round(one["accuracy"] * one["pictures"]) for one in figures) == sum(right) > 45


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"template": "a picture"}], "the template 'a picture' has no {class}"),
        ([{"class": "cat", "prompts": ["a cat"]}], "there is no class 'cat': the corpus has blue, red"),
        ([{"class": "red", "prompts": "a"}], "the \"prompts\" of class 'red' are not a list of texts"),
        ([{"class": "red", "prompts": ["a"]}], "class 'blue' has no caption"),
        (["x"], 'needs an object with "template"'),
    ],
)
def test_wrong_captions_are_one_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    (file := tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read_prompts(file, ["blue", "red"])
    assert message in str(caught.value)
