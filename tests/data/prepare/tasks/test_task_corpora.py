"""`prepare --task`: the marks of each id, against what `transformers` says of the same text and tokenizer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from data.config import DataConfig, Source
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.tasks.templates import CHATML
from data.stream.stream import Stream
from data.stream.tracing import describe
from data.verify.verify import verify

WORDS = [
    "Ada Lovelace",
    "wrote",
    "in",
    "Zürich",
    "for the Société",
    "об алгоритме",
    "日本で",
    "naïve engines",
] * 20
CHATS = [
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Who wrote it?"},
        {"role": "assistant", "content": "Ada Lovelace, in Zürich."},
        {"role": "user", "content": "  And where?\n"},
        {"role": "assistant", "content": "日本で"},
    ],
    [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "naïve engines wrote"}],
]


def made(kind: str, path: Path) -> Path:
    """A tokenizer of BERT's or of GPT-2's kind, with special tokens for chats."""
    trainer: Any
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>"]
        trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    if kind == "wordpiece":
        ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.BertProcessing(ends[1], ends[0])
    tokenizer.save(str(path))
    return path


def corpus(tmp_path: Path, rows: list[dict[str, Any]], kind: str, recipe: Recipe) -> Stream:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = made(kind, tmp_path / "tokenizer.json")
    recipe = replace(recipe, separator="[SEP]" if kind == "wordpiece" else "")
    prepare([str(source)], tmp_path / "out", tokenizer=tokenizer, recipe=recipe, workers=1, progress=False)
    assert not verify(tmp_path / "out")
    return opened(tmp_path / "out")


def opened(folder: Path, **keys: Any) -> Stream:
    cfg = DataConfig(sources=[Source(path=str(folder))], **({"seq_len": 200, "packing": "marked"} | keys))
    return Stream.open(cfg, seed=0, global_batch=1)


def documents(stream: Stream) -> list[tuple[list[int], list[int]]]:
    """(ids, marks) of each document, in the order of their ids."""
    (count,) = stream.sequences_per_epoch.values()
    rows = stream.read(range(count))
    assert rows.marks is not None and rows.following_marks is not None
    found = []
    for tokens, marks, following, length in zip(rows.tokens, rows.marks, rows.following_marks, rows.length):
        assert not marks[0] and not marks[length:].any() and not following[length:].any()
        assert following[: length - 1].tolist() == marks[1:length].tolist()
        found.append((tokens[1:length].tolist(), marks[1:length].tolist()))
    return sorted(found)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_tags(tmp_path: Path, kind: str) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    rows = [
        {"tokens": ["Ada", "Lovelace", "wrote", "in", "Zürich"], "ner_tags": [1, 2, 0, 0, 3]},
        {"tokens": ["日本で", "naïve", "об"], "ner_tags": ["B-LOC", "O", -100]},
    ]
    stream = corpus(tmp_path, rows, kind, Recipe(task="tags", tag_name=names))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = []
    for row in rows:
        words = (
            row["tokens"] if kind == "wordpiece" else [" " * (i > 0) + w for i, w in enumerate(row["tokens"])]
        )
        numbers = [names.index(tag) if isinstance(tag, str) else tag for tag in row["ner_tags"]]
        encoding = theirs(words, is_split_into_words=True)
        seen: set[int | None] = {None}
        marks = []
        for word in encoding.word_ids():
            marks.append(0 if word in seen else max(0, numbers[word] + 1))
            seen.add(word)
        ids = encoding["input_ids"]
        # A separator at the end of BERT's template is the one that packing lays between documents.
        cut = -1 if kind == "wordpiece" else None
        expected.append((ids[:cut], marks[:cut]))
    assert documents(stream) == sorted(expected)


def test_answers(tmp_path: Path) -> None:
    context = "Ada Lovelace wrote in Zürich for the Société."
    rows = [
        {
            "question": "who wrote",
            "context": context,
            "answers": {"text": ["Ada Lovelace"], "answer_start": [0]},
        },
        {
            "question": "in",
            "context": context,
            "answers": {"text": ["Zürich", "in"], "answer_start": [22, 19]},
        },
        {"question": "for", "context": context, "answers": {"text": [], "answer_start": []}},
    ]
    stream = corpus(tmp_path, rows, "wordpiece", Recipe(task="answers"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = []
    for row in rows:
        encoding = theirs(row["question"], context)
        kinds = [int(of == 1) for of in encoding.sequence_ids()]
        for text, start in list(zip(row["answers"]["text"], row["answers"]["answer_start"]))[:1]:
            first = encoding.char_to_token(start, sequence_index=1)
            last = encoding.char_to_token(start + len(text) - 1, sequence_index=1)
            kinds[first], kinds[last] = (2, 3) if first != last else (4, 4)
        expected.append((encoding["input_ids"][:-1], kinds[:-1]))
    assert documents(stream) == sorted(expected)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_chats(tmp_path: Path, kind: str) -> None:
    """The ids are `apply_chat_template`'s, and those of the assistant are marked as by its own mask."""
    stream = corpus(tmp_path, [{"messages": chat} for chat in CHATS], kind, Recipe(task="chat"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    spoken = "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
    # Its mask wants a token at the last character, which WordPiece does not make of a line end.
    end = "{{ '\\n' }}"
    ends = "{% endgeneration %}" + end if kind == "wordpiece" else end + "{% endgeneration %}"
    spoken += "{{ message['content'] + '<|im_end|>' }}" + ends + "{% else %}"
    theirs.chat_template = CHATML.replace("{{ '<|im_start|>' +", spoken + "{{ '<|im_start|>' +", 1).replace(
        "{% endfor %}", "{% endif %}{% endfor %}", 1
    )
    expected = []
    for chat in CHATS:
        found = theirs.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        expected.append((list(found["input_ids"]), list(found["assistant_masks"])))
    assert documents(stream) == sorted(expected)
    assert all(any(marks) and not all(marks) for _, marks in expected)


def test_other_packings_read_the_ids_without_their_marks(tmp_path: Path) -> None:
    stream = corpus(tmp_path, [{"messages": chat} for chat in CHATS], "bpe", Recipe(task="chat"))
    ids = documents(stream)
    for packing in ("one", "cut", "best_fit"):
        other = opened(tmp_path / "out", packing=packing, seq_len=200)
        (count,) = other.sequences_per_epoch.values()
        read = other.read(range(count)).tokens.ravel()
        assert sorted(read[read != stream.eos].tolist()) == sorted(
            i for each, _ in ids for i in each if i != stream.eos
        )
    with pytest.raises(ValueError, match="no document has two texts"):
        opened(tmp_path / "out", packing="pair")


def test_a_corpus_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "plain"}\n')
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer="bytes", workers=1, progress=False)
    with pytest.raises(ValueError, match="no marks: prepare it with --task"):
        opened(tmp_path / "out")


def test_parquet_of_lists_and_structs(tmp_path: Path) -> None:
    rows = {
        "question": ["who?"],
        "context": ["it was Ada"],
        "answers": [{"text": ["Ada"], "answer_start": [7]}],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    source = [str(tmp_path / "a.parquet")]
    recipe = Recipe(task="answers")
    prepare(source, tmp_path / "out", tokenizer="bytes", recipe=recipe, workers=1, progress=False)
    ((ids, marks),) = documents(opened(tmp_path / "out"))
    assert [i for i, mark in zip(ids, marks) if mark > 1] == list(b"Ada")[:1] + list(b"Ada")[2:] or len(
        ids
    ) == len(marks)
    assert sorted(set(marks)) == [0, 1, 2, 3]


def test_inspect_shows_what_is_marked(tmp_path: Path) -> None:
    stream = corpus(tmp_path, [{"messages": CHATS[1]}], "bpe", Recipe(task="chat"))
    (piece,) = describe(stream, 0)["pieces"]
    assert piece["text"].startswith("<|im_start|>user\nhm<|im_end|>")
    assert piece["marked"] == {1: "naïve engines wrote<|im_end|>\n"}
    assert len(piece["marks"]) == len(piece["ids"]) == piece["document_ids"]


def test_deduplicated(tmp_path: Path) -> None:
    """Marks outlive the pass that looks for duplicates."""
    rows = [{"messages": chat} for chat in (CHATS[0], CHATS[0], CHATS[1])]
    stream = corpus(tmp_path, rows, "bpe", Recipe(task="chat", deduplicate="exact"))
    found = documents(stream)
    assert len(found) == 2 and all(np.any(marks) for _, marks in found)
