"""What is damaged or grows without bound is counted, named and survived; what a tokenizer does is told."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data.corpus.manifest import read_manifest
from data.prepare.readers.dispatch import documents
from data.prepare.recipe import Recipe
from data.prepare.report.line_numbers import number_lines_by_file
from data.prepare.sources.sources import InputFile
from data.prepare.tally import Tally
from data.prepare.units import FileRange, Unit
from data.tokenizer import loading, training
from launch import cli
from prepared import by_webdataset, made, rows, texts_in

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("suffix", [".zst", ".gz", ".bz2", ".xz"])
def test_a_decompression_bomb_takes_no_memory_and_the_rows_after_it_are_read(
    tmp_path: Path, suffix: str
) -> None:
    mebibyte = b"a" * (1 << 20)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[
        suffix
    ]
    if suffix == ".zst":  # one frame, which a decoder may hand out at once
        packer = zstandard.ZstdCompressor().compressobj()
        body = b"".join(packer.compress(part) for part in [b'{"text": "', *[mebibyte] * 128]) + packer.flush()
    else:
        body = pack(b'{"text": "') + pack(mebibyte) * 64
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(pack(rows("before")) + body + pack(b'"}\n' + rows("after")))
    assert path.stat().st_size < 300_000
    code = (
        "import sys\n"
        "from data.prepare.readers.dispatch import documents; from data.prepare.recipe import Recipe\n"
        "from data.prepare.sources.sources import expand\n"
        "from data.prepare.tally import Tally; from data.prepare.units import cut_into_units\n"
        "recipe, tally = Recipe(max_document_bytes=1 << 20), Tally()\n"
        "import pyarrow\n"
        # Of this program alone: ru_maxrss begins with what the process had that started it.
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "began = peak()\n"
        "(unit,) = cut_into_units(expand(sys.argv[1:], recipe), 1 << 30, recipe)\n"
        "print([d.text for d in documents(unit.ranges[0], recipe, tally)], tally.examples)\n"
        "assert peak() - began < 48 << 10, f'{peak() - began} KiB more'\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    expected = f"['before', 'after'] {{'removed.too_long_document': ['bomb.jsonl{suffix}, line 2']}}\n"
    assert said.stdout == expected


def test_a_window_that_is_too_large_is_refused_with_the_remedy(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(rows("x")) + packer.flush())
    with pytest.raises(RuntimeError, match=r"a.jsonl.zst cannot be read.*memory"):
        made(tmp_path / "a.jsonl.zst", "bytes", tmp_path / "out")


def test_damaged_rows_are_named_by_their_line_in_a_file_that_is_cut_into_ranges(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{number:06} " * 20}) for number in range(10_000)]
    lines[9_000] = "{" + "[" * 600
    lines[9_500] = '{"text": 1'
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    report = made(tmp_path / "a.jsonl", "bytes", tmp_path / "out")
    assert report.train.documents == 9_998
    assert report.examples["removed.nested_too_deeply"] == ["a.jsonl, line 9001"]
    assert report.examples["removed.not_json"][0].startswith("a.jsonl, line 9501, column 11: Expecting ','")


def test_a_line_of_one_of_two_files_of_one_name_is_not_made_up(tmp_path: Path) -> None:
    """The tally knows their names below their sources alone."""
    tally, pieces = Tally(), []
    for folder, line in (("a", b"a line\n"), ("b", b"2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(line * 100)
        file = InputFile(folder, str(tmp_path / folder / "x.jsonl"), "x.jsonl", "jsonl", 700)
        pieces.append(FileRange(file, 70, 700))
    tally.add("removed.not_json", where="x.jsonl, line 3 after byte 70: why")
    number_lines_by_file(tally, [Unit(0, tuple(pieces))])
    assert tally.examples["removed.not_json"] == ["x.jsonl, line 3 after byte 70: why"]
    number_lines_by_file(tally, [Unit(0, tuple(pieces[:1]))])
    assert tally.examples["removed.not_json"] == ["x.jsonl, line 13: why"]


def test_a_row_whose_letters_are_escaped_may_be_three_times_its_text(tmp_path: Path) -> None:
    """As `json.dumps` escapes every letter that is not ASCII."""
    raw, recipe, tally = (
        rows("ж" * (1 << 20), "ж" * (1 << 20) + "x"),
        Recipe(max_document_bytes=2 << 20),
        Tally(),
    )
    (tmp_path / "a.jsonl").write_bytes(raw)
    file = InputFile("a", str(tmp_path / "a.jsonl"), "a.jsonl", "jsonl", len(raw))
    found = [len(document.text) for document in documents(FileRange(file, 0, len(raw)), recipe, tally)]
    assert found == [1 << 20] and tally.examples == {"removed.too_long_document": ["a.jsonl, line 2"]}


def test_a_sample_that_is_too_long_is_counted_and_the_next_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        for key, size in (("a", 1 << 22), ("b", 2000), ("c", 3)):
            tar.write({"__key__": key, "txt": "x" * size})
    report = made(tmp_path / "a.tar", "bytes", tmp_path / "out", max_document_bytes=1024)
    assert report.train.text_bytes == 3
    assert report.examples["removed.too_long_document"] == ["a.tar:a", "a.tar:b"]


def test_a_program_is_left_out_however_long_it_is(tmp_path: Path) -> None:
    program = b"\x7fELF\x02\x01\x01\0" + bytes(5000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/program").write_bytes(program)
    (tmp_path / "in/packed.txt.gz").write_bytes(gzip.compress(program))
    (tmp_path / "in/a.txt").write_text("a text")
    report = made(tmp_path / "in", "bytes", tmp_path / "out", max_document_bytes=4096)
    assert report.train.text_bytes == len("a text")
    assert report.examples["removed.binary"] == ["packed.txt.gz (a program)", "program (a program)"]


def test_a_row_with_an_id_beyond_64_bits_is_counted_and_the_next_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"input_ids": [{1 << 64}]}}\n{{"input_ids": [5, 6]}}\n')
    report = made(tmp_path / "a.jsonl", "bytes", tmp_path / "out")
    assert report.train.documents == 1
    assert report.examples["removed.ids_not_integers"] == ["a.jsonl, line 1 (one is beyond 64 bits)"]


def test_quotes_in_a_row_of_a_table_are_read_and_one_that_takes_rows_with_it_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.tsv").write_text('n\ttext\n1\t"quoted" word\n2\t5" pipe\n3\t"over\ntwo"\n')
    made(tmp_path / "a.tsv", "bytes", tmp_path / "out")
    assert [text for _, text in texts_in(tmp_path / "out")] == ["quoted word", '5" pipe', "over\ntwo"]
    for number, rest in enumerate(('"a" b\t"open\n2\tx\n', '"open\n2\t"b\n', '"open')):
        (tmp_path / f"{number}.tsv").write_text(f"text\tn\n{rest}")
        with pytest.raises(RuntimeError, match=f"{number}.tsv cannot be read: OSError: row 0, near line"):
            made(tmp_path / f"{number}.tsv", "bytes", tmp_path / f"out{number}")


@pytest.mark.parametrize("state", ["[]", "{", '{"_data_files": [1]}', '{"_data_files": 1}'])
def test_a_damaged_state_file_of_a_saved_dataset_is_one_line(tmp_path: Path, state: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data-00000-of-00001.arrow").touch()
    (tmp_path / "in/state.json").write_text(state)
    with pytest.raises(RuntimeError, match=r"^[^\n]*in/state.json does not say which files[^\n]*$"):
        made(tmp_path / "in", "bytes", tmp_path / "out")


# Tokenizers


def llama_like(path: Path, *, word: str = "[UNK]") -> Path:
    names = {word: 0, "<s>": 1, "</s>": 2, "known": 3, "words": 4}
    made = Tokenizer(models.WordLevel(names, unk_token=word))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.save(str(path))
    return path


def test_a_tokenizers_template_is_kept_or_dropped_as_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("known words")
    tokenizer = llama_like(tmp_path / "tokenizer.json")
    made(tmp_path / "a.txt", tokenizer, tmp_path / "kept")
    made(tmp_path / "a.txt", tokenizer, tmp_path / "dropped", template="drop")
    ids = {name: by_webdataset(tmp_path / name)["a.txt"][0].tolist() for name in ("kept", "dropped")}
    assert ids == {"kept": [1, 3, 4], "dropped": [3, 4]}, (
        "</s> is the separator, which lies between documents"
    )
    kept = read_manifest(tmp_path / "kept")
    assert kept.has_template
    older = {key: value for key, value in kept.prepare["settings"].items() if key != "template"}
    assert not replace(kept, prepare={**kept.prepare, "settings": older}).has_template
    dropped = Tokenizer.from_file(str(tmp_path / "dropped/tokenizer.json"))
    assert loading.template(dropped, 2) == ([], [])


def test_the_terminal_tells_in_words_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"raw content": "known strangers"}\n{"other": 1}\n{"raw\n')
    arguments = ["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    tokenizer = llama_like(tmp_path / "tokenizer.json")
    assert cli.main([*arguments, "--tokenizer", str(tokenizer), "--text-field", "raw content"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "left out: no text in the field 'raw content' 1 0 characters a.jsonl, line 2 (fields: other)" in said
    )
    assert "left out: not JSON 1 6 bytes a.jsonl, line 3, column 2: Unterminated string" in said
    assert "the tokenizer loses text: of 1 documents tried, 1 did not come back" in said
    card = (tmp_path / "out/datacard.md").read_text()
    assert "no text in the field 'raw content'" in card and "no_raw" not in card


def test_ids_that_are_no_text_by_the_tokenizer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "A text whose ids are not its bytes.\n" * 9
    np.save(tmp_path / "raw.npy", np.frombuffer(text.encode(), np.uint8))
    np.save(tmp_path / "made.npy", np.array(training.utf8_bytes().encode(text).ids))
    for name, told in (("raw", True), ("made", False)):
        command = ["prepare", str(tmp_path / f"{name}.npy"), "--out", str(tmp_path / name), "--workers", "1"]
        assert cli.main([*command, "--tokenizer", "bytes"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (
            "1 documents have ids that this tokenizer does not decode to text (raw:raw.npy:0): is it" in said
        ) == told, said


def test_a_sentencepiece_model_is_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    with contextlib.redirect_stderr(io.StringIO()):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 50), model_writer=model, vocab_size=24,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    (tmp_path / "spiece").write_bytes(model.getvalue())
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"spiece is a SentencePiece model: give the tokenizer.json"):
        made(tmp_path / "a.txt", tmp_path / "spiece", tmp_path / "out")


def test_text_that_few_documents_lose_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document in ten has letters beyond the vocabulary; pictures and rows of ids are not tried."""
    rows = [{"text": ("acgt" * 9).upper() if place % 10 else "nrykm" * 9} for place in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main([*command, "--train-tokenizer", "7", "--train-kind", "characters"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"the tokenizer loses text: of (2\d|3\d) documents tried, \d+ did not come back", said)


def test_both_texts_of_a_pair_are_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "known strangers", "answer": "known words"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    tokenizer = llama_like(tmp_path / "tokenizer.json")
    for first, second, lost in (
        ("question", "answer", 1),
        ("answer", "question", 1),
        ("answer", "answer", 0),
    ):
        out = tmp_path / f"{first}-{second}"
        command = ["prepare", str(tmp_path / "a.jsonl"), "--out", str(out), "--tokenizer", str(tokenizer)]
        assert cli.main([*command, "--text-field", first, "--second-field", second, "--workers", "1"]) == 0
        assert (f"of 1 documents tried, {lost} did not" in capsys.readouterr().out.replace("\n", " ")) == lost
