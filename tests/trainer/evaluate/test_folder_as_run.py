"""`germinal evaluate` and `germinal generate` on a Hugging Face folder in place of a run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parallel.world.runtime import Runtime
from trained_runs import make_trained_run
from trainer.config import evaluating, of_folder
from trainer.evaluate import sets
from trainer.evaluate.command import main
from trainer.evaluate.examination import Asked, examine
from trainer.export.export import export
from trainer.generate.text import continue_text
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.objectives.marked.config import AnswersConfig, TagsConfig
from whole_runs import failure, make_corpus

QUESTION = {"context": "a token", "choices": [" reads", " splits the batch of", " x"], "answer": 1}
PAIRS = {"template": "the {term} reads", "terms": [["model", "rank"], ["shard", "xyzzy"]]}


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported run."""
    out = tmp_path_factory.mktemp("exported") / "model"
    export(trained / "run", out, step=None, dtype="fp32", shard_bytes=1 << 30)
    return out


def asked(trained: Path) -> Asked:
    (trained / "folder-q.jsonl").write_text(json.dumps(QUESTION))
    (trained / "folder-b.jsonl").write_text(json.dumps(PAIRS))
    return Asked(
        sets={"made_up": str(trained / "corpus" / "heldout")},
        choices={"q": str(trained / "folder-q.jsonl")},
        bias={"b": str(trained / "folder-b.jsonl")},
    )


def on_ranks(context: Any, folder: Path, trained: Path, overrides: list[str]) -> dict[str, Any]:
    runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
    return examine(folder, overrides, runtime, asked(trained), step=None)


def test_an_exported_folder_has_the_figures_of_its_run(trained: Path, folder: Path) -> None:
    """To the last bit: weights, tokenizer, separator, context and windows are the same."""
    alone = Runtime(0, 1, 0, torch.device("cpu"))
    run, exported = (examine(one, [], alone, asked(trained), step=None) for one in (trained / "run", folder))
    assert exported["step"] is None and exported["data"] == []
    assert [exported[key] for key in ("sets", "choices", "bias")] == [
        run[key] for key in ("sets", "choices", "bias")
    ]


@pytest.mark.parametrize(
    ("world", "overrides"),
    [(2, ["parallel.zero=3"]), pytest.param(4, ["parallel.pp=2", "parallel.tp=2"], marks=pytest.mark.slow)],
    ids=str,
)
def test_every_layout_finds_the_same_of_a_folder(
    ranks: Any, trained: Path, folder: Path, world: int, overrides: list[str]
) -> None:
    alone = Runtime(0, 1, 0, torch.device("cpu"))
    expected = examine(folder, [], alone, asked(trained), step=None)
    for found in ranks(world).run(on_ranks, folder, trained, overrides):
        for kind, name, figure in (("sets", "made_up", "loss"), ("bias", "b", "difference")):
            assert found[kind][name][figure] == pytest.approx(expected[kind][name][figure], rel=1e-5)


def test_a_folder_continues_a_text_as_its_run_does(trained: Path, folder: Path) -> None:
    texts = ["".join(continue_text(one, "the model", max_tokens=20)) for one in (trained / "run", folder)]
    assert texts[0] == texts[1] and texts[0]


def test_keys_that_a_folder_does_not_say_can_be_given(folder: Path) -> None:
    cfg = evaluating.load(folder, ["data.seq_len=16", "train.micro_batch=3"], 1)
    assert (cfg.data.seq_len, cfg.train.micro_batch, cfg.objective.kind) == (16, 3, "causal_lm")
    assert of_folder.load(folder).data.seq_len == 32, "what the run was trained on"
    with pytest.raises(ValueError, match=r"train\.micro_batches"):
        of_folder.load(folder, ["train.micro_batches=3"])


def test_a_foreign_folder_without_limits_reads_rows_that_fit_memory(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, foreign := tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    (foreign / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1e30}))
    assert of_folder.load(foreign).data.seq_len == of_folder.LONGEST


def test_a_set_of_another_tokenizer_is_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from data.prepare.prepare import prepare

    make_corpus(tmp_path)
    texts = [str(tmp_path / "texts.jsonl")]
    prepare(texts, tmp_path / "other", train_tokenizer=300, workers=1, progress=False)
    assert main([str(folder), "--set", str(tmp_path / "other")]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "was prepared with another tokenizer" in line and f"--tokenizer {folder}" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "DIR"], "give --set NAME=DIR"),
        (["evaluate", "DIR", "parallel.tp=2", "--bias", "DIR/config.json"], "this is 1 process"),
        (["evaluate", "DIR/nowhere"], "no such run folder"),
    ],
)
def test_a_wrong_command_on_a_folder_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, line = failure(capfd, *(word.replace("DIR", str(folder)) for word in arguments))
    assert code == 2 and message in line


def test_what_a_folder_does_not_hold_is_one_line(
    trained: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", str(trained / "corpus" / "heldout")]
    assert main([str(folder), *sets, "--step=3"]) == 2
    assert "is a Hugging Face folder" in capfd.readouterr().err.splitlines()[-1]
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert main([str(adapter), *sets]) == 2
    assert "an adapter without the model" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("objective", "names", "keys"), [
    (AnswersConfig(), [], {"kind": "answers"}),
    (TagsConfig(tags=["O", "B-X"]), ["O", "B-X"], {"kind": "tags", "tags": ["O", "B-X"]}),
])  # fmt: skip
def test_the_objective_is_that_of_the_folders_task(
    tmp_path: Path, objective: Any, names: list[str], keys: dict[str, Any]
) -> None:
    sizes: dict[str, Any] = {"layers": 1, "hidden": 32, "heads": 4, "vocab": 300, "head_layer": "gelu"}
    model = TokenClassesConfig(**sizes, classes=2)
    made: dict[str, Any] = {"model": model, "objective": objective, "data": {"packing": "marked"}}
    make_trained_run(tmp_path / "run", **made, classes=names)
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=1 << 30)
    cfg = of_folder.load(tmp_path / "out")
    assert {key: getattr(cfg.objective, key) for key in keys} == keys and cfg.data.packing == "marked"
    assert of_folder.load(tmp_path / "out", ["objective.kind=tags"]).objective.kind == "tags"


@pytest.mark.parametrize(("objective", "own", "other"), [
    ("classes", ["code", "legal", "manual"], ["code", "manual"]), ("tags", ["O", "B-X"], ["B-X", "O"]),
])  # fmt: skip
def test_a_set_whose_classes_have_other_numbers_is_one_line(
    monkeypatch: pytest.MonkeyPatch, objective: str, own: list[str], other: list[str]
) -> None:
    """Else the right class would be counted as another one."""
    kind: Any = SimpleNamespace(kind=objective, needs={objective})
    trained: Any = SimpleNamespace(cfg=SimpleNamespace(objective=kind), checkpoint=None, run=Path("model"))
    monkeypatch.setattr(sets, "labels_at", lambda where: own)

    def corpus(names: list[str]) -> Any:
        manifest = SimpleNamespace(classes=tuple(names), prepare={"settings": {"tag_name": names}})
        return SimpleNamespace(manifest=manifest, storage=SimpleNamespace(path="corpus"))

    sets.check_names(trained, "set", corpus(own))
    sets.check_names(trained, "set", corpus(own[:1]))
    number = next(n for n, name in enumerate(other) if name != own[n])
    with pytest.raises(
        ValueError, match=f"class {number} is {other[number]!r}, and {own[number]!r} in model"
    ):
        sets.check_names(trained, "set", corpus(other))
