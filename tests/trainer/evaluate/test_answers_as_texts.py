"""Answers as texts: the figures of SQuAD over whole questions, however contexts are cut, on any layout."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchmetrics.functional.text import squad

from data.config import DataConfig
from data.corpus.corpus import open_corpus
from data.corpus.questions import questions
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.evaluate.examination import Asked, examine
from trainer.evaluation import answers
from trainer.evaluation.answers import Found
from trainer.objectives.marked.squad import compared
from trainer.trained.trained_model import TrainedModel, load_step
from whole_runs import records, train_here

WINDOW, OVERLAP, LONGEST = 40, 8, 6
CONTEXT = "The engine, of Ada Lovelace, runs in Zurich and it computes the numbers of Bernoulli."
LONG = " ".join([CONTEXT, "A loom weaves leaves: Ada saw the loom of Jacquard."])
ROWS: list[dict[str, Any]] = [
    {"question": f"{word}?", "context": context, "answers": {"text": texts, "answer_start": starts}}
    for word, context, wanted in (
        ("who", CONTEXT, ["Ada Lovelace", "Lovelace"]),
        ("where", CONTEXT, ["in Zurich"]),
        ("what", LONG, ["the loom of Jacquard.", "A loom"]),
        ("why", LONG, []),
        ("of whom", CONTEXT, ["Bernoulli"]),
        ("when", "é: in 1843", ["1843"]),
        ("how", "No.", []),
    )
    for texts, starts in [(wanted, [context.index(one) for one in wanted])]
]


@pytest.mark.parametrize(
    ("found", "answers"),
    [
        ("The  Engine!", ["engine"]),
        ("an engine of Ada's", ["the engine of Ada Lovelace", "Ada"]),
        ("Ada Ada", ["Ada"]),
        ("", [""]),
        ("engine", [""]),
        ("", ["engine"]),
        ("theatre", ["a theatre", "the"]),
    ],
)
def test_texts_are_compared_as_torchmetrics_does(found: str, answers: list[str]) -> None:
    theirs = squad(
        [{"prediction_text": found, "id": "1"}],
        [{"answers": {"text": answers, "answer_start": [0] * len(answers)}, "id": "1"}],
    )
    exact, f1 = compared(found, answers)
    assert (100 * exact, 100 * f1) == pytest.approx((float(theirs["exact_match"]), float(theirs["f1"])))


def test_an_answer_of_no_word_is_none() -> None:
    """As in SQuAD 2.0's own program: "the" is no answer where every right one is such."""
    assert compared("", ["the"]) == (1.0, 1.0) and compared("", []) == (1.0, 1.0)
    assert compared("x", []) == (0.0, 0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the questions as a corpus in windows, and one without, and a run that saw the first."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, window in (("cut", WINDOW), ("whole", 0)):
        recipe = Recipe(task="answers", window_tokens=window, window_overlap=OVERLAP, shard_bytes=1024)
        source = [str(folder / "rows.jsonl")]
        prepare(source, folder / name, tokenizer="bytes", recipe=recipe, workers=1, progress=False)
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": 264}
    config = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "model": {"kind": "token_classes", "classes": 2, **sizes},
        "objective": {"kind": "answers", "longest": LONGEST},
        "data": {
            "sources": [{"path": str(folder / "cut")}],
            "heldout": [
                {"path": str(folder / "cut"), "name": "cut"}, {"path": str(folder / "whole"), "name": "whole"}
            ],
            "seq_len": WINDOW,
            "packing": "marked",
        },
        "optim": {"lr": 1.0e-2},
        "train": {"steps": 60, "global_batch": 16, "micro_batch": 16},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert train_here(folder / "run.yaml")
    return folder


def test_windows_hold_every_token_and_share_some(home: Path) -> None:
    every = list(questions(open_corpus(str(home / "cut"), DataConfig()), 1000))
    assert sum(one.window == 0 for one in every) == len(ROWS) < len(every)
    for row in ROWS:
        texts = [one.context for one in every if one.answers == row["answers"]["text"]]
        if row["question"] in ("who?", "of whom?"):
            joined = texts[0] + "".join(text[OVERLAP:] for text in texts[1:])
            assert joined == row["context"] and len(texts) > 1


def test_figures_are_those_of_each_question_by_hand(home: Path) -> None:
    found = next(line["eval"] for line in records(home / "run" / "metrics.jsonl") if "eval" in line)
    cfg = reading.load(home / "run")
    trained = load_step(cfg, home / "run", cfg.train.steps)
    trained.model.double().eval()
    for name, room in (("cut", WINDOW), ("whole", 0)):
        predictions = [answer(trained, row, room) for row in ROWS]
        theirs = [compared(text, row["answers"]["text"]) for text, row in zip(predictions, ROWS)]
        expected = [sum(column) / len(ROWS) for column in zip(*theirs)]
        assert [found[name]["exact_match"], found[name]["f1"]] == pytest.approx(expected)
        assert found[name]["questions"] == len(ROWS)
        assert any(predictions) and 0 < expected[1] < 1


def test_the_score_of_no_answer_is_the_least_of_all_windows(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the answer is the best of all: each score of each question, against an enumeration of windows."""
    told: list[list[Found]] = []
    real = answers.text_figures
    monkeypatch.setattr(answers, "text_figures", lambda found: told.append(found) or real(found))
    examine(home / "run", ["parallel.tp=1"], Runtime(0, 1, 0, torch.device("cpu")), Asked(), step=None)
    trained = load_step(reading.load(home / "run"), home / "run", 60)
    trained.model.double().eval()
    assert len(told) == 2 and [len(found) for found in told] == [len(ROWS)] * 2
    places = set()
    for row, found in zip(ROWS, told[0], strict=True):
        scores = list(windows(trained, row, WINDOW))
        nones = [none for none, _ in scores]
        best, text = max((span for _, spans in scores for span in spans), key=lambda one: one[0])
        assert (found.none, found.score) == pytest.approx((min(nones), best), abs=1e-4)
        assert found.text == text and found.answers == row["answers"]["text"]
        places |= {nones.index(min(nones)) - len(nones)} if len(nones) > 1 else set()
    assert len(places) > 1  # the least one is not always that of the same window


def answer(trained: TrainedModel, row: dict[str, Any], window: int) -> str:
    """The likeliest span of all windows, by enumeration, one unpadded row at a time; "" for no answer."""
    scores = list(windows(trained, row, window))
    best, text = max((span for _, spans in scores for span in spans), key=lambda one: one[0])
    return "" if min(none for none, _ in scores) >= best else text


def windows(
    trained: TrainedModel, row: dict[str, Any], window: int
) -> Iterator[tuple[float, list[tuple[float, str]]]]:
    """Of each window the score of no answer, and score and text of each span."""
    question = trained.tokenizer.encode(row["question"]).ids
    context = trained.tokenizer.encode(row["context"])
    eos, whole = trained.separator, context.ids
    room = window - 2 - len(question) if window else len(whole)
    first = 0
    while True:
        ids = [eos, *question, eos, *whole[first : first + room]][:WINDOW]
        with torch.no_grad():
            x = torch.tensor([ids])
            scores = trained.model(x, positions=torch.arange(len(ids))[None], documents=torch.zeros_like(x))[
                0
            ]
        scores = scores.reshape(len(ids), 2)
        start, spans = 2 + len(question), list[tuple[float, str]]()
        for a in range(start, len(ids)):
            for b in range(a, min(a + LONGEST, len(ids))):
                score = float(scores[a, 0] + scores[b, 1])
                begin, end = context.offsets[first + a - start][0], context.offsets[first + b - start][1]
                text = row["context"][begin:end].strip()
                spans.append((score, text))
        yield float(scores[0].sum()), spans
        if first + room >= len(whole):
            return
        first += room - OVERLAP


def on_ranks(context: Any, home: Path, overrides: list[str]) -> dict[str, Any]:
    runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
    return examine(home / "run", overrides, runtime, Asked(), step=None)["sets"]


@pytest.mark.parametrize("overrides", [pytest.param([], marks=pytest.mark.slow), ["parallel.pp=2"]])
def test_figures_are_the_same_on_every_layout(ranks: Any, home: Path, overrides: list[str]) -> None:
    recorded = next(line["eval"] for line in records(home / "run" / "metrics.jsonl") if "eval" in line)
    for found in ranks(2).run(on_ranks, home, overrides):
        for name, figures in recorded.items():
            assert found[name] | figures == pytest.approx(found[name], rel=1e-5)


def test_answers_behind_the_end_of_a_row_are_told(home: Path) -> None:
    (event,) = [line for line in records(home / "run" / "events.jsonl") if line["kind"] == "cut"]
    assert event["corpus"] == "held-out whole" and event["cut"] == 3
    assert "data.seq_len=40" in event["reason"] and "--window-tokens 40" in event["reason"]
