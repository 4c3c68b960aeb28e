"""Names of classes: from the corpus into checkpoints and exported folders, and checked where one is read."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.config import DataConfig, Source
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.stream.stream import Stream
from trained_runs import make_trained_run
from trainer.config.run_config import RunConfig
from trainer.export.export import export
from trainer.first_weights.checkpoint_source import CheckpointSource
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.labels import check_labels, labels_at
from trainer.first_weights.match import Match
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.marked.config import TagsConfig
from trainer.objectives.picture_config import ClassificationConfig
from trainer.start.opening import class_names
from whole_runs import GERMINAL

SIZES: dict[str, Any] = {"layers": 1, "hidden": 32, "heads": 4, "vocab": 300, "head_layer": "gelu"}
TAKEN = Match(frozenset(), {}, (), ())
DRAWN = Match(frozenset(), {}, ("head.project.bias", "head.project.weight"), ())


def exported(tmp_path: Path, classes: list[str]) -> Path:
    make_trained_run(
        tmp_path / "run",
        model=TextClassesConfig(**SIZES, classes=3),
        objective=ClassificationConfig(),
        data={"packing": "one"},
        classes=classes,
    )
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    return tmp_path / "out"


def test_names_are_those_of_the_exported_config(tmp_path: Path) -> None:
    from transformers import AutoConfig

    out = exported(tmp_path, ["cat", "dog", "bird"])
    theirs = AutoConfig.from_pretrained(out)
    assert theirs.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert theirs.label2id == {"cat": 0, "dog": 1, "bird": 2}
    assert labels_at(out) == ["cat", "dog", "bird"]


def test_classes_without_a_name_keep_their_number(tmp_path: Path) -> None:
    out = exported(tmp_path, ["cat", "dog"])
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "LABEL_2"}


def test_a_folder_with_other_labels_is_one_line(tmp_path: Path) -> None:
    source = HuggingFaceSource(exported(tmp_path, ["cat", "dog", "bird"]))
    check_labels(["cat", "dog", "bird"], source, TAKEN, ["head"])
    check_labels(["cat", "dog"], source, TAKEN, ["head"])
    check_labels([], source, TAKEN, ["head"])
    check_labels(["fish"], source, DRAWN, ["head"])
    new = (
        r"class 1 is 'dog' there, and 'fish' in the corpora, and 'fish' is a label that its config does not "
    )
    with pytest.raises(ValueError, match=new + r"have: [^\n]*drawn anew$"):
        check_labels(["cat", "fish"], source, TAKEN, ["head"])
    with pytest.raises(ValueError, match=r"class 0 is 'cat' there, and 'dog' in the corpora: prepare"):
        check_labels(["dog", "cat"], source, TAKEN, ["head"])
    run = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    with pytest.raises(ValueError, match="is a label that its config does not have"):
        check_labels(["fish"], CheckpointSource(run, source.model), TAKEN, ["head"])


def test_numbers_alone_say_nothing(tmp_path: Path) -> None:
    out = exported(tmp_path, [])
    assert labels_at(out) == []
    check_labels(["fish"], HuggingFaceSource(out), TAKEN, ["head"])


def texts(folder: Path, labels: list[str], count: int = 40) -> Path:
    source = folder / "texts.jsonl"
    rows = ({"text": f"a text of number {n}", "label": labels[n % len(labels)]} for n in range(count))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(label_field="label")
    prepare([str(source)], folder / "corpus", tokenizer="bytes", workers=1, progress=False, recipe=recipe)
    return folder / "corpus"


def words(folder: Path) -> Path:
    source = folder / "words.jsonl"
    rows = ({"tokens": ["Ada", "of", str(n)], "ner_tags": [1, 0, 0]} for n in range(20))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(task="tags", text_field="tokens", label_field="ner_tags", tag_name=["O", "B-PER"])
    prepare([str(source)], folder / "corpus", tokenizer="bytes", workers=1, progress=False, recipe=recipe)
    return folder / "corpus"


def names_of(corpus: Path, packing: str, objective: ObjectiveConfig, model: Any) -> list[str]:
    data = DataConfig(sources=[Source(path=str(corpus))], seq_len=32, packing=packing)  # type: ignore[arg-type]
    stream = Stream.open(data, seed=0, global_batch=2)
    return class_names(RunConfig(name="run", model=model, data=data, objective=objective), stream)


def test_a_run_knows_the_names_that_prepare_was_given(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    corpus = texts(tmp_path / "a", ["dog", "cat"])
    found = names_of(corpus, "one", ClassificationConfig(), TextClassesConfig(**SIZES))
    assert found == ["cat", "dog"]
    corpus, model = words(tmp_path / "b"), TokenClassesConfig(**SIZES)
    assert names_of(corpus, "marked", TagsConfig(), model) == ["O", "B-PER"]
    assert names_of(corpus, "marked", TagsConfig(tags=["O", "B-LOC"]), model) == ["O", "B-LOC"]


def germinal(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GERMINAL, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_from_prepare_to_the_folder_and_back(tmp_path: Path) -> None:
    """prepare → train → export → train: names are kept, and other ones refused."""
    for name, labels in (("first", ["dog", "cat"]), ("second", ["cat", "fish"])):
        (tmp_path / name).mkdir()
        texts(tmp_path / name, labels)
    config: dict[str, Any] = {
        "name": "run",
        "run_dir": str(tmp_path / "run"),
        "model": {"kind": "text_classes", "classes": 2, **SIZES},
        "objective": {"kind": "classification"},
        "data": {
            "sources": [{"path": str(tmp_path / "first" / "corpus")}],
            "seq_len": 32,
            "packing": "one",
        },
        "train": {"steps": 1, "global_batch": 4, "micro_batch": 4, "precision": "fp32"},
        "checkpoint": {"every": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert (done := germinal("train", tmp_path / "config.yaml")).returncode == 0, done.stderr
    assert (done := germinal("export", tmp_path / "run", "--out", tmp_path / "out")).returncode == 0, done
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label2id"] == {"cat": 0, "dog": 1}
    again = ["train", tmp_path / "config.yaml", "model={init_from: " + str(tmp_path / "out") + "}"]
    same = germinal(*again, f"run_dir={tmp_path / 'again'}", "model.kind=text_classes")
    assert same.returncode == 0, same.stderr
    other = f"data.sources=[{{path: {tmp_path / 'second' / 'corpus'}}}]"
    refused = germinal(*again, f"run_dir={tmp_path / 'other'}", other)
    assert refused.returncode == 2
    assert "class 1 is 'dog' there, and 'fish' in the corpora" in refused.stderr
