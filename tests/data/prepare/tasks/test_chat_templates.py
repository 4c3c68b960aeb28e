"""Conversations by templates of the forms that models have: ids and marks against `apply_chat_template`."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data.config import DataConfig, Source
from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.tasks.templates import CHATML
from data.stream.stream import Stream

# Written here in the forms that Llama 3 and Qwen 3 document, without their tools and dates.
LLAMA3 = (
    "{% for message in messages %}"
    "{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = CHATML.replace(
    "message['content'] }}{{ '<|im_end|>\\n' }}",
    "'' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}",
)
CHAT = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Who wrote it?"},
    {"role": "assistant", "content": "Ada Lovelace."},
    {"role": "user", "content": "And where?"},
    {"role": "assistant", "content": "In Zürich."},
]
SPECIAL = [
    "<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|im_start|>", "<|im_end|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with Llama 3's special tokens, which it begins a text with, and ChatML's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator([" ".join(one["content"] for one in CHAT)] * 5, trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    begin = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    made.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def corpus(folder: Path, rows: list[dict[str, Any]], tokenizer: Path | str, **keys: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(**({"task": "chat"} | keys))
    source = [str(folder / "rows.jsonl")]
    prepare(source, folder / "out", tokenizer=tokenizer, recipe=recipe, workers=1, progress=False)
    return folder / "out"


def rows_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(ids, marks) of each document of a corpus."""
    cfg = DataConfig(sources=[Source(path=str(folder))], seq_len=300, packing="marked")
    stream = Stream.open(cfg, seed=0, global_batch=1)
    (count,) = stream.sequences_per_epoch.values()
    rows = stream.read(range(count))
    assert rows.marks is not None
    return [
        (ids[1:length].tolist(), marks[1:length].tolist())
        for ids, marks, length in zip(rows.tokens, rows.marks, rows.length)
    ]


@pytest.mark.parametrize(
    ("template", "learnt"),
    [
        (LLAMA3, ["Ada Lovelace.<|eot_id|>", "In Zürich.<|eot_id|>"]),
        (QWEN3, ["Ada Lovelace.<|im_end|>\n", "<think>\n\n</think>\n\nIn Zürich.<|im_end|>\n"]),
        (GENERATION, ["Ada Lovelace.<|im_end|>", "In Zürich.<|im_end|>"]),
        (CHATML, ["Ada Lovelace.<|im_end|>\n", "In Zürich.<|im_end|>\n"]),
    ],
    ids=["llama 3", "qwen 3", "with generation", "chatml"],
)
def test_ids_are_those_of_transformers_and_answers_are_marked_whole(
    tmp_path: Path, tokenizer: Path, template: str, learnt: list[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    out = corpus(tmp_path, [{"messages": CHAT}], tokenizer, chat_template=str(folder))
    ((ids, marks),) = rows_of(out)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), bos_token="<|begin_of_text|>")
    theirs.chat_template = template
    found = theirs.apply_chat_template(CHAT, tokenize=True, return_dict=True)
    assert ids == list(found["input_ids"])
    assert theirs.decode([i for i, mark in zip(ids, marks) if mark]) == "".join(learnt)
    if template is GENERATION:
        masked = theirs.apply_chat_template(
            CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert marks == list(masked["assistant_masks"])
    assert read_manifest(out).prepare["chat_template"] == template
    assert (out / "chat_template.jinja").read_text() == template


SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, SHAREGPT[1]]},
        {"conversations": SHAREGPT},
        {"prompt": "a", "completion": "b"},
        {"prompt": SHAREGPT[:1], "completion": SHAREGPT[1:]},
        {"instruction": "a", "input": "", "output": "b"},
    ],
)
def test_every_form_of_a_conversation_is_read(tmp_path: Path, row: dict[str, Any]) -> None:
    ((ids, marks),) = rows_of(corpus(tmp_path, [row], "bytes"))
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert (len(ids), sum(marks)) == (len(text), len("b<|im_end|>\n"))


def test_half_of_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\ud83d"}]
    ((ids, marks),) = rows_of(corpus(tmp_path, [{"messages": said}], "bytes"))
    assert sum(marks) == len("b\ufffd<|im_end|>\n".encode()) < len(ids)


def test_a_role_that_is_not_known_is_named(tmp_path: Path) -> None:
    row = {"messages": [{"role": "narrator", "content": "a"}]}
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: a message has the role 'narrator'"):
        corpus(tmp_path, [row], "bytes")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps({"settings": [{"paragraphs": []}]}))
    recipe = Recipe(task="answers")
    with pytest.raises(ValueError, match=r"dev\.json is read as text, and --task answers takes rows"):
        prepare([str(tmp_path / "dev.json")], tmp_path / "out", tokenizer="bytes", recipe=recipe, workers=1)


def test_tables_of_conversations_and_of_tags_with_names(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"conversations": SHAREGPT}]).to_parquet(tmp_path / "c.parquet")
    names = ["O", "B-PER"]
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        ner_tags=datasets.Sequence(datasets.ClassLabel(names=names)),
    )
    made = datasets.Dataset.from_dict({"tokens": [["Ada", "wrote"]], "ner_tags": [[1, 0]]}, features=features)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "t.parquet")
    for source, task in (("c.parquet", "chat"), ("saved", "tags"), ("t.parquet", "tags")):
        out = tmp_path / f"{source}-out"
        recipe = Recipe(task=task)
        prepare([str(tmp_path / source)], out, tokenizer="bytes", recipe=recipe, workers=1, progress=False)
        ((_, marks),) = rows_of(out)
        settings = read_manifest(out).prepare["settings"]
        if task == "tags":
            assert settings["tag_name"] == names and [mark for mark in marks if mark] == [2, 1]


def test_what_is_taken_without_a_name_or_a_token_is_counted(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "\u200b", "b"], "ner_tags": [0, 1, 0]}]
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "[SEP]": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("\u200b", "removed")
    made.save(str(tmp_path / "t.json"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    report = prepare(
        [str(tmp_path / "rows.jsonl")], tmp_path / "out", tokenizer=tmp_path / "t.json",
        recipe=Recipe(task="tags"), workers=1, progress=False,
    )  # fmt: skip
    assert report.counts["noted.unnamed_tags"][0] == 1
    assert report.counts["noted.words_without_token"][0] == 1
