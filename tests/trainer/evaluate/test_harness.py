"""lm-evaluation-harness's own task format on local data: a run folder in any layout gives the numbers of the
exported model in transformers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from parallel.world.runtime import Runtime
from trainer.evaluate.command import main
from trainer.evaluate.examination import Asked, examine
from trainer.export.export import export

QUESTIONS = [
    {"text": "a token", "choices": ["reads", "splits", "is of the batch"], "label": 1},
    {"text": "the model", "choices": ["loss", "of to the stage", "x"], "label": 0},
    {"text": "rank é", "choices": ["shard", "a", "zz"], "label": 2},
]
TASKS: list[dict[str, Any]] = [
    {
        "task": "local_choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    {
        "task": "local_texts",
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{text}} and {{choices|join(' ')}} {{text}} once more",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    {
        "task": "local_likelihood",
        "output_type": "loglikelihood",
        "doc_to_target": " {{choices[0]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    {
        "task": "local_words",
        "output_type": "generate_until",
        "doc_to_target": "  ",
        "generation_kwargs": {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
]
NAMES = tuple(task["task"] for task in TASKS)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_tasks(folder: Path) -> Path:
    (data := folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    for task in TASKS:
        own = common | ({"doc_to_text": ""} if task["output_type"] == "loglikelihood_rolling" else {})
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(own | task))
    return folder


def on_rank(rank: int, world: int, run: Path, include: Path, overrides: list[str]) -> dict[str, Any]:
    runtime = Runtime(rank, world, rank, torch.device("cpu"))
    return examine(run, overrides, runtime, Asked(tasks=NAMES, include=str(include)), step=None)["tasks"]


def on_ranks(context: Any, run: Path, include: Path, overrides: list[str]) -> dict[str, Any]:
    return on_rank(context.rank, context.world, run, include, overrides)


def in_transformers(run: Path, include: Path) -> dict[str, Any]:
    """What the harness finds with its own model of transformers, which reads the exported run."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    export(run, include / "exported", step=None, dtype="fp32", shard_bytes=1 << 30)
    model = HFLM(pretrained=str(include / "exported"), batch_size=1, device="cpu")
    loaded = TaskManager(include_path=str(include)).load(list(NAMES))
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return evaluate(model, loaded, bootstrap_iters=0)


@pytest.mark.slow
def test_the_numbers_are_those_of_transformers(trained: Path, tmp_path: Path) -> None:
    include, run = write_tasks(tmp_path), trained / "run"
    found, theirs = on_rank(0, 1, run, include, []), in_transformers(run, include)["results"]
    assert set(found) == set(NAMES)
    for name in NAMES:
        compared = 0
        for key, value in found[name].items():
            expected = theirs[name].get(f"{key},none", theirs[name].get(key))
            assert value == pytest.approx(expected, rel=1e-4), (name, key)
            compared += isinstance(value, float)
        assert compared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "overrides"), [(2, ["parallel.tp=2"]), (4, ["parallel.pp=2", "parallel.zero=1"])], ids=str
)
def test_the_numbers_are_those_of_every_layout(
    ranks: Any, trained: Path, tmp_path: Path, world: int, overrides: list[str]
) -> None:
    include, run = write_tasks(tmp_path), trained / "run"
    found = on_rank(0, 1, run, include, [])
    for other in ranks(world).run(on_ranks, run, include, overrides, timeout_seconds=400.0):
        for name in NAMES:
            assert other[name] == pytest.approx(found[name], rel=1e-4)


@pytest.mark.slow
def test_texts_are_continued_as_transformers_continues_them(trained: Path, tmp_path: Path) -> None:
    """Not only their score: the words."""
    from contextlib import ExitStack

    from lm_eval.api.instance import Instance

    from trainer.evaluate.harness import GerminalLM
    from trainer.trained.on_ranks import open_run

    with ExitStack() as stack:
        runtime = Runtime(0, 1, 0, torch.device("cpu"))
        opened = open_run(trained / "run", ["train.micro_batch=2"], runtime, stack)
        model = GerminalLM(opened)
        settings = TASKS[-1]["generation_kwargs"]
        asked = [
            Instance("generate_until", {}, (one["text"], settings), number)
            for number, one in enumerate(QUESTIONS)
        ]
        written = model.generate_until(asked)
        stopped = model.generate_until(
            [Instance("generate_until", {}, (QUESTIONS[0]["text"], settings | {"until": [written[0][2]]}), 0)]
        )
    samples = in_transformers(trained / "run", write_tasks(tmp_path))["samples"]["local_words"]
    expected = {sample["doc"]["text"]: sample["resps"][0][0] for sample in samples}
    assert written == [expected[one["text"]] for one in QUESTIONS] and len(written[0]) == 6
    assert stopped == [written[0].split(written[0][2])[0]]


@pytest.mark.slow
def test_a_text_of_a_chat_model_ends_with_its_message(trained: Path, tmp_path: Path) -> None:
    """The exported folder's generation_config.json says where; `until` of the task does not."""
    from contextlib import ExitStack

    from lm_eval.api.instance import Instance

    from trainer.evaluate.harness import GerminalLM
    from trainer.trained.on_ranks import open_run

    export(trained / "run", tmp_path / "chat", step=None, dtype="fp32", shard_bytes=1 << 30)
    says = tmp_path / "chat" / "generation_config.json"

    def written() -> str:
        with ExitStack() as stack:
            opened = open_run(tmp_path / "chat", [], Runtime(0, 1, 0, torch.device("cpu")), stack)
            asked = (QUESTIONS[0]["text"], TASKS[-1]["generation_kwargs"])
            return GerminalLM(opened).generate_until([Instance("generate_until", {}, asked, 0)])[0]

    whole = written()
    with ExitStack() as stack:
        texts = open_run(tmp_path / "chat", [], Runtime(0, 1, 0, torch.device("cpu")), stack).texts
    end = texts.tokenizer.encode(whole, add_special_tokens=False).ids[2]
    says.write_text(json.dumps(json.loads(says.read_text()) | {"eos_token_id": [texts.separator, end]}))
    assert written() == whole.split(texts.tokenizer.decode([end]))[0] != whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"eos_token": "w"},
        {"bos_token": None, "eos_token": "w"},
        {"bos_token": {"__type": "AddedToken", "content": "v"}},
    ],
)
def test_a_text_without_a_context_begins_as_in_transformers(
    trained: Path, tmp_path: Path, named: dict[str, Any]
) -> None:
    """A model of conversations may name the end of a message as eos_token, and no bos_token."""
    from contextlib import ExitStack

    from lm_eval.models.huggingface import HFLM

    from trainer.evaluate.harness import GerminalLM
    from trainer.trained.on_ranks import open_run

    export(trained / "run", tmp_path / "chat", step=None, dtype="fp32", shard_bytes=1 << 30)
    (tmp_path / "chat/special_tokens_map.json").unlink()
    settings = tmp_path / "chat/tokenizer_config.json"
    said = json.loads(settings.read_text())
    kept = {key: value for key, value in said.items() if not named or key not in ("bos_token", "eos_token")}
    settings.write_text(json.dumps(kept | named))
    theirs = HFLM(pretrained=str(tmp_path / "chat"), batch_size=1, device="cpu").prefix_token_id
    with ExitStack() as stack:
        opened = open_run(tmp_path / "chat", [], Runtime(0, 1, 0, torch.device("cpu")), stack)
        assert GerminalLM(opened).prefix_token_id == theirs
    with ExitStack() as stack:
        opened = open_run(trained / "run", [], Runtime(0, 1, 0, torch.device("cpu")), stack)
        assert GerminalLM(opened).prefix_token_id == opened.texts.separator
        assert (theirs == opened.texts.separator) == (not named)


@pytest.mark.slow
def test_a_task_that_there_is_not_is_one_line(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained / "run"), "--tasks=no_such_task", f"--include={tmp_path}"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "--tasks no_such_task: lm-evaluation-harness has no such task" in last
