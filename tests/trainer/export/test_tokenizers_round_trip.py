"""Tokenizers of each kind, from a folder through prepare and export to `AutoTokenizer`: the same ids."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.corpus.manifest import read_manifest
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.tokenizer import folders, loading, training
from data.tokenizer.encoder import Encoder
from trainer.export.export import export
from trainer.export.tokenizer_files import special_tokens, tokenizer_files
from whole_runs import train_here, write_config

SCRIPTS = (
    *((0x41, 0x7A), (0x20, 0x20), (0x20, 0x20), (0x30, 0x39), (0x0A, 0x0A), (0x21, 0x2F), (0xC0, 0xFF)),
    *((0x410, 0x44F), (0x4E00, 0x4E40), (0x620, 0x64A), (0x905, 0x939), (0x1F600, 0x1F64F), (0xAC00, 0xAC40)),
    *((0x300, 0x30F), (0x0E01, 0x0E3A), (0xE000, 0xE010)),
)
"""Latin, Cyrillic, Chinese, Arabic, Devanagari, emoji, Korean, combining marks, Thai, private use."""


def texts(count: int, seed: int = 0) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 40)):
            low, high = draw.choice(SCRIPTS)
            parts += [chr(draw.randint(low, high)) for _ in range(draw.randint(1, 6))]
        yield "".join(parts)


def unigram() -> Tokenizer:
    """As SentencePiece's: Metaspace and NFKC, with Llama's template."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    made.train_from_iterator(
        texts(500),
        trainers.UnigramTrainer(
            vocab_size=3000, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def wordpiece() -> Tokenizer:
    """As BERT's: text is lowered and loses its accents."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        texts(500), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


KINDS: dict[str, Any] = {
    "bpe": lambda: training.train("bpe", texts(500), 1000),
    "unigram": unigram,
    "wordpiece": wordpiece,
}


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
SAID = [{"role": "user", "content": "two words"}, {"role": "assistant", "content": "one"}]
ENDS = {"bpe": "<|endoftext|>", "unigram": "</s>", "wordpiece": "[SEP]"}
ADDED = "a_word_of_its_own"


def folder_of(path: Path, kind: str) -> Path:
    """A folder as transformers writes it, with added tokens, special ones and a template of conversations."""
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        eos_token=ENDS[kind],
        chat_template=TEMPLATE,
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    made.add_tokens([ADDED])
    made.save_pretrained(path)
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["short", "ten_thousand"]
)
def test_ids_are_the_same_all_the_way(kind: str, count: int, tmp_path: Path) -> None:
    """A folder → prepare → training → export → AutoTokenizer, as the class of each architecture finds it."""
    from transformers import AutoTokenizer

    given = folder_of(tmp_path / "given", kind)
    documents = [text for text in texts(count, seed=1) if text.strip()]
    documents[::7] = [f"{text} {ADDED} {text}" for text in documents[::7]]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus = tmp_path / "corpus"
    prepare([str(source)], corpus, tokenizer=given, workers=1, progress=False, recipe=Recipe())
    manifest = read_manifest(corpus)
    tokenizer, eos = loading.load(corpus / "tokenizer.json"), manifest.tokenizer.eos
    encoder = Encoder(tokenizer, eos)
    written = [encoder(text).tolist() for text in documents]
    assert sum(map(len, written)) == sum(shard.tokens for shard in manifest.shards)

    model = {"kind": "decoder", "layers": 1, "hidden": 16, "heads": 2, "vocab": encoder.vocab}
    data = {"sources": [{"path": str(corpus)}], "seq_len": 64}
    train = {"steps": 3, "global_batch": 4, "micro_batch": 4, "threads": 1}
    assert train_here(write_config(tmp_path, corpus, model=model, data=data, train=train))
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)

    before: Any = AutoTokenizer.from_pretrained(given)
    # Between documents packing lays the separator, which is the template's last id.
    ends = [eos] if encoder.before else []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for architecture in ("llama", "gpt2", "mistral", "qwen3"):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"model_type": architecture}))
        theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert theirs.eos_token_id == eos
        assert list(theirs(documents)["input_ids"]) == [[*ids, *ends] for ids in written]
        assert theirs.special_tokens_map == before.special_tokens_map
        assert theirs.get_added_vocab() == before.get_added_vocab() and ADDED in before.get_added_vocab()
        assert theirs.apply_chat_template(SAID)["input_ids"] == before.apply_chat_template(SAID)["input_ids"]
    expected = f"<|user|>two words{ENDS[kind]}\n<|assistant|>one{ENDS[kind]}\n"
    assert theirs.apply_chat_template(SAID, tokenize=False) == expected


def test_a_folder_with_an_older_vocabulary_is_converted(tmp_path: Path) -> None:
    """vocab.txt and vocab.json with merges.txt give the ids of their classes in transformers."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "!"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    made = loading.given(tmp_path / "bert")
    assert made.encode("Hello worlds!").ids == [2, 5, 6, 7, 8, 3]
    bpe = training.train("bpe", texts(200), 400)
    (tmp_path / "gpt2").mkdir()
    bpe.model.save(str(tmp_path / "gpt2"))
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    made = loading.given(tmp_path / "gpt2")
    assert all(made.encode(text).ids == bpe.encode(text).ids for text in texts(50, seed=2))


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"the {n} models read {n * 7} shards of words" for n in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=90, model_type="bpe"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    made = loading.given(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("the 7 models read", "shards of 49 words", "words the models"):
        assert made.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer .* is a folder without tokenizer\.json or an older"):
        loading.given(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\n")
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^tokenizer .*: holds vocab\.txt and no tokenizer\.json: transf"):
        loading.given(tmp_path)


def test_the_files_of_the_folder_that_a_run_began_from_are_kept(tmp_path: Path) -> None:
    content = training.utf8_bytes().to_str().encode()
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    special = special_tokens(training.utf8_bytes(), 0, template=False)
    kept = tokenizer_files(content, special, context=32, origins=[tmp_path])
    assert kept["tokenizer_config.json"] == b'{"chat_template": "x"}'
    other = tokenizer_files(content + b" ", special, context=32, origins=[tmp_path])
    assert json.loads(other["tokenizer_config.json"])["eos_token"] == special.tokens["eos_token"]
