"""`germinal evaluate` on a run folder: the figures of the run itself, of texts, and of another layout."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data.tokenizer import training
from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.evaluate.command import main
from trainer.evaluate.examination import Asked, examine
from trainer.evaluate.sets import perplexity
from trainer.evaluation.report import document, markdown
from trainer.trained.trained_model import load_step
from whole_runs import failure, records

QUESTIONS = [
    {"context": "a token", "choices": [" reads", " splits the batch of", " x"], "answer": 1},
    {"context": "", "choices": ["the model", "zzz"], "answer": "the model"},
]
PAIRS = {"template": "the {term} reads", "terms": [["model", "rank"], ["shard", "xyzzy"]]}


def files(folder: Path) -> Asked:
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "b.jsonl").write_text(json.dumps(PAIRS))
    return Asked(
        sets={"seen": str(folder / "corpus" / "train")},
        choices={"q": str(folder / "q.jsonl")},
        bias={"b": str(folder / "b.jsonl")},
    )


def alone() -> Runtime:
    return Runtime(0, 1, 0, torch.device("cpu"))


def on_ranks(context: Any, folder: Path, overrides: list[str]) -> dict[str, Any]:
    runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
    return examine(folder / "run", overrides, runtime, files(folder), step=None)


@pytest.mark.parametrize("step", [3, 6])
def test_the_figures_are_those_of_the_run_itself(trained: Path, step: int) -> None:
    recorded = [line for line in records(trained / "run" / "metrics.jsonl") if "eval" in line]
    expected = next(line for line in recorded if line["step"] == step)["eval"]["made_up"]
    found = examine(trained / "run", [], alone(), Asked(), step=step)
    assert found["step"] == step and list(found["sets"]) == ["made_up"]
    figures = found["sets"]["made_up"]
    assert figures["loss"] == expected["loss"] and figures["bits_per_byte"] == expected["bits_per_byte"]
    assert figures["perplexity"] == math.exp(expected["loss"])
    assert found["data"][0]["documents"] > 0


def test_texts_have_the_likelihood_of_float64(trained: Path) -> None:
    """The separator, then the bytes of the text: one forward of the whole model for each, unpadded."""
    found = examine(trained / "run", [], alone(), files(trained), step=None)
    cfg = reading.load(trained / "run")
    whole = load_step(cfg, trained / "run", 6)
    model, tokenizer = whole.model.double(), training.utf8_bytes()

    def log_likelihood(before: str, behind: str) -> float:
        context, continuation = tokenizer.encode(before).ids, tokenizer.encode(behind).ids
        ids = torch.tensor([[whole.separator, *context, *continuation]])
        with torch.no_grad():
            logits = model(ids[:, :-1])[0, -len(continuation) :]
        return -float(F.cross_entropy(logits, ids[0, -len(continuation) :], reduction="sum"))

    differences = []
    for one, other in PAIRS["terms"]:
        pair = [log_likelihood("", PAIRS["template"].replace("{term}", term)) for term in (one, other)]
        differences.append(pair[0] - pair[1])
    assert found["bias"]["b"]["difference"] == pytest.approx(sum(differences) / 2, rel=1e-4)
    chosen, chosen_by_byte, losses = [], [], []
    for question in QUESTIONS:
        choices = question["choices"]
        answer = choices.index(question["answer"]) if question["context"] == "" else question["answer"]
        scores = torch.tensor([log_likelihood(question["context"], choice) for choice in choices])
        chosen.append(int(scores.argmax()) == answer)
        lengths = torch.tensor([len(choice.encode()) for choice in choices])
        chosen_by_byte.append(int((scores / lengths).argmax()) == answer)
        losses.append(-float(scores.log_softmax(0)[answer]))
    figures = found["choices"]["q"]
    assert figures["accuracy"] == sum(chosen) / 2
    assert figures["accuracy_by_byte"] == sum(chosen_by_byte) / 2
    assert figures["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, ["parallel.zero=3", "train.micro_batch=3"]),
        pytest.param(4, ["parallel.pp=2", "parallel.tp=2"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_layout_finds_the_same(ranks: Any, trained: Path, world: int, overrides: list[str]) -> None:
    expected = examine(trained / "run", [], alone(), files(trained), step=None)
    for found in ranks(world).run(on_ranks, trained, overrides):
        for kind in ("sets", "choices", "bias"):
            for name, figures in expected[kind].items():
                for key, value in figures.items():
                    if key != "bins":
                        assert found[kind][name][key] == pytest.approx(value, rel=1e-5), (kind, name, key)


def test_several_runs_on_several_sets_are_a_table(trained: Path) -> None:
    runs = [examine(trained / "run", [], alone(), files(trained), step=step) for step in (3, 6)]
    runs[1]["run"] = "later"
    runs[1]["sets"].pop("seen")
    table = document(runs)["table"]
    bits = [run["sets"]["made_up"]["bits_per_byte"] for run in runs]
    assert table["figure"] == "bits_per_byte" and table["sets"] == ["made_up", "seen"]
    rows = list(table["rows"].values())
    assert rows == [[bits[0], runs[0]["sets"]["seen"]["bits_per_byte"]], [bits[1], None]]
    text = markdown(runs)
    assert "| later" in text and f"{bits[1]:.4f}" in text and "### Bias" in text


def test_the_command_prints_one_json_document_and_writes_it(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(trained / "run")
    assert main([run, "--json", "--step=3", f"--out={tmp_path / 'new' / 'found.json'}"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == json.loads((tmp_path / "new" / "found.json").read_text())
    assert found["runs"][0]["step"] == 3
    assert "| made_up" in (tmp_path / "new" / "found.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--step=4"], "--step 4: "),
        (["RUN", "--set", "x=RUN"], "is not a corpus"),
        (["RUN", "--bias", "RUN/config.yaml"], "config.yaml, line 1: "),
        (["RUN", "--choices", "RUN/config.yaml", "--shots=2"], "config.yaml, line 1: "),
        (["RUN", "--images", "x=RUN", "--prompts", "RUN/config.yaml"], "has no two towers for them"),
    ],
)
def test_what_a_run_does_not_do_is_one_line(
    trained: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = str(trained / "run")
    assert main([word.replace("RUN", run) for word in arguments]) == 2
    out, err = capfd.readouterr()
    assert not out and message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--set", "corpus"], "corpus is not there"),
        (["RUN", "--images", "x=RUN"], "--images needs --prompts"),
        (["RUN", "--shots", "-1"], "--shots -1"),
        (["RUN", "--shots", "2"], "--shots 2: there is no --choices or --tasks for it"),
        (["RUN", "--limit", "2"], "--limit 2: there is no --tasks for it"),
        (["RUN", "--shots-from", "RUN/config.yaml"], "there is no --choices for it"),
        (["RUN", "--shots-from=RUN/config.yaml", "--choices=RUN/config.yaml"], "needs --shots K"),
        (["RUN", "--out", "RUN/config.yaml/x/found.json"], "config.yaml is no folder"),
        (["RUN", "parallel.tp=2"], "this is 1 process"),
        (["RUN", "train.steps=x"], "train.steps"),
        (["train.steps=1"], "which run?"),
    ],
)
def test_a_wrong_command_is_one_line(
    trained: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = str(trained / "run")
    code, line = failure(capfd, "evaluate", *(word.replace("RUN", run) for word in arguments))
    assert code == 2 and message in line


def test_a_set_without_a_target_has_no_perplexity() -> None:
    assert math.isnan(perplexity(math.nan)) and perplexity(1e4) == math.inf and perplexity(0.0) == 1.0
