"""configs/finetune: the runs on marked tokens, made small, on corpora of a small standard library."""

import sysconfig
from pathlib import Path

import pytest

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from whole_runs import records, train_here

FOLDER = Path(__file__).parents[3] / "configs"
FUNCTION = '''
def number_{n}(a, b={n}):
    """Give the number {n}, or more."""
    if not a:
        raise os.error("no {n}")
    return max(a, b) + {n}
'''


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, and a standard library of one package."""
    package = tmp_path / "library" / "numbers"
    package.mkdir(parents=True)
    (package / "all.py").write_text("".join(FUNCTION.format(n=n) for n in range(80)))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(package.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(name: str, tokenizer: str | None = None) -> None:
    prepare(
        [f"embedded:{name}"], Path("corpora", name), tokenizer=tokenizer, recipe=Recipe(), workers=1,
        progress=False,
    )  # fmt: skip


SHORT = ("train.steps=2", "train.global_batch=4", "train.micro_batch=4", "train.eval_documents=4")


@pytest.mark.parametrize(
    ("name", "figures"),
    [("tags", {"accuracy", "f1"}), ("answers", {"exact_match", "f1", "token_f1"})],
)
def test_tokens_of_code(home: Path, name: str, figures: set[str]) -> None:
    made(f"python_{name}")
    assert train_here(FOLDER / "finetune" / f"{name}.yaml", *SHORT)
    (found,) = (line["eval"] for line in records(Path("runs", name, "metrics.jsonl")) if "eval" in line)
    assert figures <= found[name].keys()
    assert not [e for e in records(Path("runs", name, "events.jsonl")) if e["kind"] == "cut"]


def test_conversations_on_a_model_of_code(home: Path) -> None:
    made("python")
    base = ("model.vocab=2052", *SHORT)
    assert train_here(FOLDER / "objectives" / "fill_in_the_middle.yaml", *base)
    made("python_chats", "corpora/python/train/tokenizer.json")
    assert train_here(FOLDER / "finetune" / "chats.yaml", *SHORT)
    (found,) = (line["eval"] for line in records(Path("runs/chats/metrics.jsonl")) if "eval" in line)
    assert found["chats"]["loss"] > 0
    assert "<|im_start|>" in Path("runs/chats/chat_template.jinja").read_text()
