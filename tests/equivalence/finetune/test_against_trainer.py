"""Fine-tuning here and by Hugging Face's Trainer and PEFT: the same weights and rows give the same losses."""

import json
import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from pictures import write_folders
from stock_models import stock
from stock_side import GatedTrainer, stock_model, take_drawn, training_rows
from tuned_tasks import BERT, LLAMA, VIT, Setting, Tuned
from whole_runs import WORDS, make_corpus

STEPS, TOLERANCE = 8, 1e-5
BERT_SIZES = {
    "vocab_size": 288,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 287,  # BERT's embedding of this token is not trained; 0 ends our documents
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
}
LLAMA_SIZES = {
    "vocab_size": 288,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VIT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "num_labels": 3,
    "patch_size": 4,
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Texts with classes, texts alone, pictures with classes."""
    folder, draw = tmp_path_factory.mktemp("corpora"), random.Random(0)
    with (folder / "labelled.jsonl").open("w") as out:
        for number in range(80):
            words = " ".join(draw.choice(WORDS) for _ in range(draw.choice((1, 2, 9))))
            out.write(json.dumps({"text": f"{number} {words}", "label": f"kind {number % 3}"}) + "\n")
    prepare([str(folder / "labelled.jsonl")], folder / "bert", tokenizer="bytes", heldout=0.2, workers=1,
            progress=False, recipe=Recipe(label_field="label"))  # fmt: skip
    write_folders(folder / "in", ("cat", "dog", "yak"), 20)
    prepare([str(folder / "in")], folder / "vit", tokenizer="bytes", heldout=0.2, workers=1, progress=False,
            recipe=Recipe(block_documents=5))  # fmt: skip
    (folder / "llama").mkdir()
    return {
        "bert": folder / "bert",
        "vit": folder / "vit",
        "llama": make_corpus(folder / "llama", documents=30),
    }


def setting(name: str, corpora: dict[str, Path], base: Path, *, lora: bool) -> Setting:
    common: dict[str, Any] = {"base": base, "corpus": corpora[name], "lora": lora, "lr": 5e-3}
    common |= {"steps": STEPS, "batch": 8, "weight_decay": 0.1, "clip": 0.2}
    if name == "bert":
        stock("BertForMaskedLM", "BertConfig", BERT_SIZES).save_pretrained(base)  # type: ignore[operator]
        return Setting(BERT, seq_len=32, classes=3, **common)
    if name == "vit":
        stock("ViTForImageClassification", "ViTConfig", VIT_SIZES).save_pretrained(base)  # type: ignore[operator]
        # The Trainer lets the tables of positions decay, which is spared here.
        return Setting(VIT, image_size=16, classes=3, **(common | {"weight_decay": 0.0}))
    stock("LlamaForCausalLM", "LlamaConfig", LLAMA_SIZES).save_pretrained(base)  # type: ignore[operator]
    return Setting(LLAMA, seq_len=32, **common)


def losses(here: Setting, folder: Path, there: Setting | None = None) -> tuple[list[float], list[float]]:
    """Return our losses and the Trainer's; `there`: its setting, if it is another one."""
    with ExitStack() as stack:
        tuned = Tuned(here, folder, stack)
        model = stock_model(here)
        take_drawn(model, tuned)
        trainer = GatedTrainer(model, training_rows(tuned.run.cfg), there or here)
        ours = [tuned.step(number) for number in range(STEPS)]
        theirs = [trainer.step(number) for number in range(STEPS)]
        trainer.finish()
    return ours, theirs


def distance(ours: list[float], theirs: list[float]) -> float:
    return max(abs(one / other - 1) for one, other in zip(ours, theirs, strict=True))


CASES = [("bert", False), ("bert", True), ("llama", False), ("llama", True), ("vit", False)]


@pytest.mark.parametrize(("name", "lora"), CASES)
def test_losses_are_the_trainer_s(name: str, lora: bool, corpora: dict[str, Path], tmp_path: Path) -> None:
    here = setting(name, corpora, tmp_path / "base", lora=lora)
    ours, theirs = losses(here, tmp_path)
    assert abs(ours[0] - ours[-1]) > 0.01 and len(set(ours)) == STEPS
    assert distance(ours, theirs) <= TOLERANCE, (ours, theirs)


@pytest.mark.parametrize("changed", [{"weight_decay": 0.0}, {"clip": 100.0}, {"betas": (0.9, 0.99)}])
def test_another_hyper_parameter_is_seen(
    changed: dict[str, Any], corpora: dict[str, Path], tmp_path: Path
) -> None:
    here = setting("bert", corpora, tmp_path / "base", lora=False)
    assert distance(*losses(here, tmp_path, replace(here, **changed))) > 2 * TOLERANCE
