"""Text to prepare, and corpora made of it: what the tests of `prepare` share."""

import json
import random
from pathlib import Path

import numpy as np
import webdataset
from tokenizers import Tokenizer

from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report.outcome import PrepareReport

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "ünï", "東京", "🌱"]


def write_texts(folder: Path, count: int = 60, seed: int = 0) -> dict[str, str]:
    """Text files of very unequal lengths: name → text."""
    rng = random.Random(seed)
    texts = {}
    for number in range(count):
        words = rng.choices(WORDS, k=int(rng.expovariate(1 / 200)) + 1)
        name = f"part{number % 7}/file{number:03d}.txt"
        texts[name] = "".join(word + rng.choice([" ", " ", "\n", "\r\n", "\t"]) for word in words)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(texts[name].encode())
    return texts


SMALL = {"shard_bytes": 8 << 10}


def run(tmp_path: Path, out: str, workers: int = 1, **settings: object) -> PrepareReport:
    recipe = Recipe(**{**SMALL, **settings})  # type: ignore[arg-type]
    return prepare(
        [str(tmp_path / "texts")],
        tmp_path / out,
        train_tokenizer=400,
        heldout=0.0 if recipe.heldout_match else 0.2,
        workers=workers,
        recipe=recipe,
        progress=False,
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus but the scratch folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".prepare" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def by_webdataset(folder: Path) -> dict[str, tuple[np.ndarray, dict]]:
    """What plain webdataset reads: path → (ids, json)."""
    urls = [str(folder / shard.file) for shard in read_manifest(folder).shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return {sample["json"]["path"]: (sample["npy"], sample["json"]) for sample in dataset}


def made(
    source: Path | str, tokenizer: Path | str, out: Path, workers: int = 1, **recipe: object
) -> PrepareReport:
    """A corpus of one source, by whatever settings."""
    heldout = float(recipe.pop("heldout", 0.0))  # type: ignore[arg-type]
    settings = Recipe(**recipe)  # type: ignore[arg-type]
    return prepare(
        [str(source)],
        out,
        tokenizer=tokenizer,
        heldout=heldout,
        workers=workers,
        recipe=settings,
        progress=False,
    )


def texts_in(folder: Path) -> list[tuple[str, str]]:
    """(path below the source, text) of every document of a corpus, in order."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    urls = sorted(str(path) for path in folder.glob("shard-*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode()
    return [
        (s["json"]["path"], tokenizer.decode(s["npy"].tolist(), skip_special_tokens=False)) for s in samples
    ]


def rows(*texts: str) -> bytes:
    """Lines of JSON."""
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
