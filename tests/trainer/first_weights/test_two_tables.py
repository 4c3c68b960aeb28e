"""A folder that has one tensor under two names: equal ones are read, and different ones refused."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.tokenizer import training
from parallel.world.runtime import Runtime
from stock_models import write_folder
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.open import open_source
from trainer.huggingface.folder import INDEX, WEIGHTS
from trainer.huggingface.meaning import differing
from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.trained.on_ranks import open_run

LLAMA = DecoderConfig(layers=1, hidden=32, heads=4, vocab=264, tie_embeddings=True)
BERT = EncoderConfig(
    layers=1,
    hidden=32,
    heads=4,
    vocab=264,
    tie_embeddings=True,
    norm_place="post",
    positions="learned",
    max_positions=32,
    token_types=2,
    window=0,
    norm_eps=1e-12,
    activation="gelu",
    biases=True,
)
CASES = {
    "llama": (LLAMA, "model.embed_tokens.weight", "lm_head.weight"),
    "bert": (BERT, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "bert_bias": (BERT, "cls.predictions.bias", "cls.predictions.decoder.bias"),
    "without_head": (LLAMA, "model.norm.weight", "norm.weight"),
}


def folder_with(path: Path, cfg: ModelConfig, name: str, other: str, *, change: float) -> Path:
    """A folder that has the tensor `name` as `other`, too, with its last number changed."""
    write_folder(path, cfg, shards=1)
    (path / INDEX).unlink()
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    second = tensors[name].clone()
    second.view(-1)[-1] += change
    file.unlink()
    save_file({**tensors, other: second}, path / WEIGHTS)
    (path / "tokenizer.json").write_text(training.utf8_bytes().to_str())
    return path


@pytest.mark.parametrize("case", CASES)
def test_two_names_with_different_numbers_are_one_line(case: str, tmp_path: Path) -> None:
    cfg, name, other = CASES[case]
    folder = folder_with(tmp_path / "folder", cfg, name, other, change=0.5)
    ties, untie = "ties", r"set tie_word_embeddings to false [^\n]*"
    if case == "without_head":
        ties, untie = "describes", ""
    message = (
        rf"^{folder}: tensors {name} and {other} differ, and config\.json {ties} them as one: in a copy "
        rf"of the folder {untie}leave the wrong one out$"
    )
    with pytest.raises(ValueError, match=message):
        open_source(str(folder))
    alone = Runtime(0, 1, 0, torch.device("cpu"))
    with ExitStack() as stack, pytest.raises(ValueError, match=message):
        open_run(folder, [], alone, stack)


@pytest.mark.parametrize("case", CASES)
def test_two_names_with_the_same_numbers_are_one_tensor(case: str, tmp_path: Path) -> None:
    cfg, name, other = CASES[case]
    source = HuggingFaceSource(folder_with(tmp_path / "folder", cfg, name, other, change=0.0))
    assert source.besides == [] and not differing(source.model, cfg)


def test_the_remedy_reads_both_tables(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "folder", *CASES["llama"], change=0.5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    source = HuggingFaceSource(folder)
    assert not differing(source.model, replace(LLAMA, tie_embeddings=False))
    tables = [source.read(name, [0, 0], [264, 32]) for name in ("embed.weight", "head.weight")]
    assert float((tables[0] - tables[1]).abs().max()) == pytest.approx(0.5)


def test_the_table_of_the_head_stands_for_no_missing_embedding(tmp_path: Path) -> None:
    """Where they are two, the name that a tied folder may have is the other one's."""
    cfg = replace(LLAMA, tie_embeddings=False)
    write_folder(tmp_path / "folder", cfg, shards=1)
    (tmp_path / "folder" / INDEX).unlink()
    (file,) = (tmp_path / "folder").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.embed_tokens.weight"]
    file.unlink()
    save_file(tensors, tmp_path / "folder" / WEIGHTS)
    assert "embed.weight" not in HuggingFaceSource(tmp_path / "folder").parameters
