"""Duplicates: exact ones always, near ones by their similarity, the first stays; and the data card that
says so.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from data.corpus.manifest import read_manifest
from data.prepare.cleaning import dedup
from data.prepare.preparation import HELDOUT, TRAIN
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.report.outcome import PrepareReport


def words(count: int, rng: random.Random) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=6)) for _ in range(count)]


def run(tmp_path: Path, texts: list[str], **recipe: object) -> tuple[PrepareReport, list[int]]:
    """(the report, the numbers of the texts that are left)"""
    lines = [json.dumps({"text": text, "license": "MIT", "language": "de"}) + "\n" for text in texts]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    chosen = Recipe(shard_bytes=4096, **recipe)  # type: ignore[arg-type]
    report = prepare(
        [str(tmp_path / "in.jsonl")],
        tmp_path / "out",
        tokenizer="bytes",
        recipe=chosen,
        workers=1,
        progress=False,
    )
    from webdataset import WebDataset

    urls = [str(report.train.path / shard.file) for shard in read_manifest(report.train.path).shards]
    offsets = np.cumsum([0, *(len(line) for line in lines)]).tolist()
    left = WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return report, [offsets.index(sample["json"]["offset"]) for sample in left]


def test_exact_duplicates_keep_the_first(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [" ".join(words(30, rng)) for _ in range(40)]
    doubled = [*texts, texts[3], *texts[10:20], texts[3] + " "]
    report, left = run(tmp_path, doubled, deduplicate="exact")
    assert left == [*range(40), 51]
    assert report.counts["removed.duplicate"] == (11, sum(len(t) for t in [texts[3], *texts[10:20]]))


def changed(text: list[str], share: float, rng: random.Random) -> str:
    """A copy of which the last words are others, so that the runs of five words have a known similarity."""
    keep = round(len(text) * (1 - share))
    return " ".join(text[:keep] + words(len(text) - keep, rng))


def test_near_duplicates_go_and_others_stay(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    rng = random.Random(1)
    originals = [words(400, rng) for _ in range(40)]
    near = [changed(text, 0.02, rng) for text in originals]  # similarity about 0.95
    far = [changed(text, 0.40, rng) for text in originals]  # similarity about 0.43
    texts = [" ".join(text) for text in originals] + near + far + ["too few words"] * 1
    report, left = run(tmp_path, texts, deduplicate="near")
    assert left == [*range(40), *range(80, 121)]
    assert report.counts["removed.near_duplicate"][0] == 40
    assert "removed.duplicate" not in report.counts


def test_bands_find_what_is_asked_for() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        count, rows = dedup.bands(threshold)
        assert 1 - (1 - threshold**rows) ** count >= 0.95
        assert count * rows <= dedup.PERMUTATIONS
    assert dedup.bands(0.8) == (18, 7)


def test_signatures_estimate_the_similarity() -> None:
    pytest.importorskip("rensa")
    rng = random.Random(2)
    text = words(1000, rng)
    for share in (0.1, 0.3, 0.5):
        same = round(1000 * (1 - share)) - 4
        true = same / (2 * 996 - same)
        estimates = []
        for _ in range(8):
            one, other = " ".join(text), changed(text, share, rng)
            a, b = dedup.signature(one, 128), dedup.signature(other, 128)
            assert a is not None and b is not None
            estimates.append((a == b).mean())
        assert abs(float(np.mean(estimates)) - true) < 0.06
    assert dedup.signature("four words are few", 128) is None


def test_the_data_card_says_what_went_and_why(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = [" ".join(words(30, rng)) for _ in range(60)]
    lines = [
        {"text": text, "license": "MIT" if n % 2 else "CC0", "language": "de"} for n, text in enumerate(texts)
    ]
    lines += [lines[0], {"text": "short"}, {"body": "none"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    recipe = Recipe(min_characters=10, deduplicate="exact")
    report = prepare(
        [str(tmp_path / "in.jsonl")],
        out,
        train_tokenizer=300,
        heldout=0.2,
        recipe=recipe,
        workers=1,
        progress=False,
    )
    card = json.loads((out / "datacard.json").read_text())
    assert card["read"]["documents"] == 62
    assert {step["step"]: step["documents"] for step in card["steps"]} == {
        "removed.duplicate": 1,
        "removed.no_text_field": 1,
        "removed.too_short": 1,
    }
    assert report.heldout is not None
    assert card["corpus"][TRAIN]["documents"] + card["corpus"][HELDOUT]["documents"] == 60
    assert card["made_of"]["licence"]["MIT"][0] == 30
    assert sum(counts[2] for counts in card["made_of"]["tokens_log2"].values()) == (
        report.train.tokens + report.heldout.tokens
    )
    page = (out / "datacard.md").read_text()
    assert set(card["made_of"]["round_trip"]) == {"same"}
    assert "documents tried came back from their ids byte for byte" in page
    assert "| left out: shorter than --min-characters | 1 | 5 | characters | `in:in.jsonl:" in page
    assert "| MIT | 30 |" in page and "| de | 60 |" in page
    for name in ("datacard-lengths.png", "datacard-languages.png"):
        assert f"]({name})" in page
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_tokenizer_that_loses_something_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("two  spaces and\n a line " * 20)
    recipe = Recipe(train_kind="wordpiece")
    prepare(
        [str(tmp_path / "in.txt")],
        tmp_path / "out",
        train_tokenizer=80,
        recipe=recipe,
        workers=1,
        progress=False,
    )
    assert "0 of 1 documents tried came back" in (tmp_path / "out/datacard.md").read_text()
