"""Tokenizers of each kind, from a folder through prepare and export to `AutoTokenizer`: the same ids."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.config import Source
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.tokenizer import folders, loading, training
from data.tokenizer.encoder import Encoder
from trained_runs import make_trained_run
from trainer.export.export import export
from trainer.export.tokenizer_files import special_tokens, tokenizer_files
from trainer.models.decoder.config import DecoderConfig

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["short", "ten_thousand"]
)
def test_ids_are_the_same_all_the_way(kind: str, count: int, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    given = tmp_path / "given"
    given.mkdir()
    KINDS[kind]().save(str(given / "tokenizer.json"))
    (given / "config.json").write_text("{}")
    documents = [text for text in texts(count, seed=1) if text.strip()]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    prepare([str(source)], tmp_path / "corpus", tokenizer=given, workers=1, progress=False, recipe=Recipe())
    folder = tmp_path / "corpus" / "train"
    folder = folder if folder.is_dir() else tmp_path / "corpus"
    content = (folder / "tokenizer.json").read_bytes()
    tokenizer = loading.load(folder / "tokenizer.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    eos = manifest["tokenizer"]["eos"]
    encoder = Encoder(Tokenizer.from_str(content.decode()), eos)
    written = [encoder(text).tolist() for text in documents]
    assert sum(map(len, written)) == sum(shard["tokens"] for shard in manifest["shards"])
    special = special_tokens(tokenizer, eos, template=bool(encoder.before))
    for architecture in ("llama", "gpt2", "mistral", "qwen3"):
        out = tmp_path / architecture
        out.mkdir()
        for name, data in tokenizer_files(content, special, context=10**6, origins=[]).items():
            (out / name).write_bytes(data)
        (out / "config.json").write_text(json.dumps({"model_type": architecture}))
        theirs = AutoTokenizer.from_pretrained(out)
        assert theirs.eos_token_id == eos
        # Between documents packing lays the separator, which is the template's last id.
        ends = [eos] if encoder.before else []
        found = theirs(documents)["input_ids"]
        assert list(found) == [[*ids, *ends] for ids in written]


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


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"


def test_a_chat_template_goes_from_the_folder_to_the_exported_one(tmp_path: Path) -> None:
    """prepare --tokenizer DIR → a run → export: the template and the special tokens of the folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    given, out, corpus = tmp_path / "given", tmp_path / "out", tmp_path / "corpus"
    own = PreTrainedTokenizerFast(
        tokenizer_object=training.train("bpe", texts(200), 400),
        eos_token="<|endoftext|>",
        chat_template=TEMPLATE,
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    own.save_pretrained(given)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(20, seed=1)))
    prepare([str(source)], corpus, tokenizer=given, workers=1, progress=False, recipe=Recipe())
    content = (corpus / "tokenizer.json").read_bytes()
    run = tmp_path / "run"
    make_trained_run(
        run,
        eos=json.loads((corpus / "manifest.json").read_text())["tokenizer"]["eos"],
        model=DecoderConfig(layers=1, hidden=32, heads=4, vocab=512),
        data={"sources": [Source(path=str(corpus))]},
        tokenizer=content,
    )
    export(run, out, step=None, dtype="fp32", shard_bytes=10**9)
    before, after = AutoTokenizer.from_pretrained(given), AutoTokenizer.from_pretrained(out)
    said = [{"role": "user", "content": "two words"}, {"role": "assistant", "content": "one"}]
    expected = before.apply_chat_template(said, tokenize=False)
    assert expected == "<|user|>two words<|endoftext|>\n<|assistant|>one<|endoftext|>\n"
    assert after.apply_chat_template(said, tokenize=False) == expected
    assert after.apply_chat_template(said)["input_ids"] == before.apply_chat_template(said)["input_ids"]
    assert after.special_tokens_map == before.special_tokens_map
