"""A model of conversations that a run begins from: where its texts end, and how long they may be, stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.prepare.tasks.templates import CHATML
from data.tokenizer import training
from stock_models import DECODERS, stock
from trained_runs import make_trained_run
from trainer.config import reading
from trainer.export.export import export
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.generate.text import open_writer
from trainer.models.decoder.config import DecoderConfig
from trainer.trained.tokenizer import prompting_of

CONTEXT = 512
SEQ = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on rows of 32 tokens, with <|endoftext|> between documents, that began from a folder whose
    eos_token is <|im_end|> and whose model reads 512 tokens.
    """
    from transformers import PreTrainedTokenizerFast

    home = tmp_path_factory.mktemp("chat")
    tokenizer = training.train("bpe", ["user and assistant say some words"] * 9, 280)
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    own.save_pretrained(home / "stock")
    cls, config, keys = DECODERS["qwen3"]
    sizes = {"vocab_size": 300, "max_position_embeddings": CONTEXT, "eos_token_id": own.eos_token_id}
    stock(cls, config, keys | sizes).save_pretrained(home / "stock")  # type: ignore[operator]
    content = (home / "stock" / "tokenizer.json").read_bytes()
    eos = own.convert_tokens_to_ids("<|endoftext|>")
    begun = HuggingFaceSource(home / "stock").model
    assert isinstance(begun, DecoderConfig)
    model = replace(begun, init_from=str(home / "stock"))
    make_trained_run(home / "run", eos=eos, model=model, tokenizer=content, data={"seq_len": SEQ})
    export(home / "run", home / "out", step=None, dtype="fp32", shard_bytes=10**9)
    return home / "out"


def test_generation_ends_at_a_message_and_at_a_document(exported: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(exported)
    ends = GenerationConfig.from_pretrained(exported).eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    for folder in (exported, exported.with_name("run")):
        assert open_writer(folder).ends == {*ends}, folder


def test_the_run_s_template_says_where_a_message_ends(exported: Path, tmp_path: Path) -> None:
    """Where its tokenizer does not: a run on chats that began from no model of chats."""
    from transformers import GenerationConfig

    tokenizer = (exported / "tokenizer.json").read_bytes()
    make_trained_run(run := tmp_path / "run", tokenizer=tokenizer)
    (run / "chat_template.jinja").write_text(CHATML)
    export(run, tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert isinstance(ends, list) and len(ends) == 2 and open_writer(run).ends == {*ends}


def test_a_short_training_makes_no_context_shorter(exported: Path, tmp_path: Path) -> None:
    """Nor does a run that begins from a run, which began from the folder."""
    assert json.loads((exported / "config.json").read_text())["max_position_embeddings"] == CONTEXT
    first = exported.with_name("run")
    begun = reading.load(first).model
    assert isinstance(begun, DecoderConfig)
    model = replace(begun, init_from=str(first))
    make_trained_run(
        tmp_path / "second",
        model=model,
        tokenizer=(first / "tokenizer.json").read_bytes(),
        data={"seq_len": SEQ},
    )
    export(tmp_path / "second", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == CONTEXT


def test_an_evaluation_of_the_export_has_the_run_s_separator(exported: Path) -> None:
    """The run's held-out sets, which have it between documents, are then those of the folder."""
    texts = prompting_of(exported, HuggingFaceSource(exported).model)
    assert texts.tokenizer.id_to_token(texts.separator) == "<|endoftext|>"
