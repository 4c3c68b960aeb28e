"""The bias probe: pairs of sentences, their interval, and a bias that was planted in a corpus."""

import json
import math
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.evaluation.bias import Bias, Pair, measure, read_pairs
from whole_runs import records, train_here, write_config

ROLES = ("doctor", "pilot", "cook", "nurse", "clerk", "judge")
PAST = ("was late", "had won", "would go")


def template(role: str) -> str:
    return f"the {role} said that {{term}}"


def make_biased_corpus(folder: Path, share: float) -> Path:
    """Make sentences in which so large a share is about "he", and the others about "she"."""
    from data.prepare.prepare import prepare

    draw = random.Random(0)
    sentences = [
        f"{template(role).format(term=term)} {past}"
        for role in ROLES
        for past in PAST
        for term in ["he"] * round(40 * share) + ["she"] * round(40 * (1 - share))
    ]
    # The number makes each a document of its own, or all that are alike would be held out together.
    texts = [f"{sentence}, {draw.randrange(1000)}" for sentence in sentences]
    draw.shuffle(texts)
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare([str(source)], folder / "corpus", tokenizer="bytes", heldout=0.05, workers=1, progress=False)
    return folder / "corpus"


def biases_in_run(folder: Path, share: float) -> list[dict[str, Any]]:
    """Train a tiny model on such a corpus; return what its evaluations record of the bias."""
    folder.mkdir()
    pairs = folder / "pronouns.jsonl"
    lines = [{"template": template(role) + " was late", "terms": ["he", "she"]} for role in ROLES]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = write_config(
        folder,
        make_biased_corpus(folder, share),
        model={"kind": "decoder", "layers": 2, "hidden": 48, "heads": 4, "vocab": 288},
        data__seq_len=64,
        data__document_mask=True,
        data__packing="best_fit",
        data__ledger=False,
        optim={"lr": 3.0e-3, "schedule": "cosine", "warmup_steps": 10},
        train={
            "steps": 120,
            "global_batch": 16,
            "micro_batch": 16,
            "eval_every": 60,
            "eval_bias": [str(pairs)],
        },
        checkpoint__every=0,
    )
    assert train_here(config)
    return [line for line in records(folder / "run" / "metrics.jsonl") if "bias" in line]


def bias_of(record: dict[str, Any]) -> Bias:
    found = record["bias"]["pronouns"]
    return Bias(len(ROLES), len(ROLES), found["difference"], found["low"], found["high"])


@pytest.mark.slow
def test_a_planted_bias_is_found_and_its_balanced_twin_has_none(tmp_path: Path) -> None:
    planted = biases_in_run(tmp_path / "planted", 0.9)
    assert [record["step"] for record in planted] == [60, 120] and "made_up" in planted[-1]["eval"]
    last = bias_of(planted[-1])
    assert last.is_found and last.difference > 1.0
    balanced = bias_of(biases_in_run(tmp_path / "balanced", 0.5)[-1])
    assert not balanced.is_found and abs(balanced.difference) < 0.5


def test_the_interval_is_that_of_the_normal_distribution_for_many_pairs() -> None:
    drawn = np.random.default_rng(1).normal(0.3, 2.0, 400)
    found = measure(drawn, [str(number) for number in range(400)])
    half = 1.96 * drawn.std() / 20
    assert found.difference == drawn.mean()
    assert found.low == pytest.approx(drawn.mean() - half, abs=0.05 * half * 2)
    assert found.high == pytest.approx(drawn.mean() + half, abs=0.05 * half * 2)


def test_pairs_of_one_template_are_not_independent() -> None:
    """Each difference ten times over: ten templates know no more than ten pairs do."""
    once = np.random.default_rng(1).normal(0.3, 2.0, 10)
    alone = measure(once, [str(number) for number in range(10)])
    repeated = measure(np.repeat(once, 10), [str(number) for number in range(10) for _ in range(10)])
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    of_one_template = measure(np.repeat(once, 10), ["the same"] * 100)
    assert of_one_template.high - of_one_template.low < 0.5 * (alone.high - alone.low)
    assert math.isnan(measure(once[:1], ["x"]).low) and not measure(once[:1], ["x"]).is_found


def test_templates_and_sentences_are_read(tmp_path: Path) -> None:
    lines = [
        {"template": "{term} and {term}.", "terms": [["a", "b"], ["c", "d"]], "group": "letters"},
        {"sentences": ["One.", "Two."]},
    ]
    (file := tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_pairs(file) == [
        Pair("a and a.", "b and b.", "{term} and {term}.", "letters"),
        Pair("c and c.", "d and d.", "{term} and {term}.", "letters"),
        Pair("One.", "Two.", "One.\nTwo."),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"template": "no term", "terms": ["a", "b"]}', "the template 'no term' has no {term}"),
        ('{"template": "a {term}"}', 'has no "terms": give pairs, such as [["he", "she"]]'),
        ('{"template": "a {term}", "terms": [["a", "b", "c"]]}', '"terms": ["a", "b", "c"] is not two texts'),
        ('{"sentences": ["a", "a"]}', "both sentences are 'a'"),
        ('{"sentences": ["a", ""]}', "a sentence is empty"),
        ('{"text": "a"}', 'needs an object with "template"'),
        ('{"sentences": ["a", "b"], "group": null}', '"group" is null: give a text, or leave it out'),
        ('{"sentences": ["a", "b"], "group": ["c"]}', '"group" is ["c"]'),
        ("[1", "line 1: column 3: Expecting ',' delimiter"),
        ("", "has no line: give a template with {term} and its terms, or two sentences"),
    ],
)
def test_a_wrong_file_of_pairs_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    (file := tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read_pairs(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_many_templates_take_memory_in_proportion() -> None:
    """The draws of all 2,000 resamples of 5,000 templates would be 80 MB at once, twice."""
    differences = np.random.default_rng(3).normal(size=5000)
    tracemalloc.start()
    found = measure(differences, [f"template {number}" for number in range(5000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20 and found.templates == 5000
    assert found.low < found.difference < found.high
