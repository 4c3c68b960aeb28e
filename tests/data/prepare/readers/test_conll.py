"""Columns of words and tags, as CoNLL-2003, CoNLL-U and their like have them: `--task tags`."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data.prepare import units
from data.prepare.document import Document
from data.prepare.prepare import prepare
from data.prepare.readers.dispatch import documents
from data.prepare.readers.tag_names import with_tag_names
from data.prepare.recipe import Recipe, for_task
from data.prepare.report.outcome import PrepareReport
from data.prepare.sources import sources
from data.prepare.tally import Tally
from data.verify.verify import verify
from prepared import tree

pytestmark = pytest.mark.usefixtures("no_pictures")

# As eng.train has it: four columns by spaces, documents parted by a line of their own, IOB1.
CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
. . O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- -X- O

ZÜRICH NNP I-NP I-LOC
1996-08-22 CD I-NP O
"""
# As en_ewt-ud-dev.conllu has it.
CONLL_U = """# newdoc id = weblog-1
# sent_id = weblog-1-1
# text = Don't panic, "日本"
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\tMood=Imp\t3\taux\t3:aux\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t3:advmod\t_
3\tpanic\tpanic\tVERB\tVB\tMood=Imp\t0\troot\t0:root\tSpaceAfter=No
4\t,\t,\tPUNCT\t,\t_\t3\tpunct\t3:punct\t_
4.1\tgone\tgo\tVERB\tVBN\t_\t_\t_\t0:root\t_
5\t日本\t_\t_\tFW\t_\t3\tobj\t3:obj\t_

# sent_id = weblog-1-2
1\t#\t#\tSYM\t#\t_\t0\troot\t0:root\t_

"""
EXPECTED_2003 = [
    ("EU rejects German call .", ["I-ORG", "O", "I-MISC", "O", "O"]),
    ("Peter Blackburn", ["I-PER", "I-PER"]),
    ("ZÜRICH 1996-08-22", ["I-LOC", "O"]),
]
EXPECTED_U = [("Do n't panic , 日本", ["AUX", "PART", "VERB", "PUNCT"]), ("#", ["SYM"])]


def read(path: Path, unit_bytes: int = 1 << 30, **keys: Any) -> tuple[list[Document], Recipe, Tally]:
    """The documents of a file that is read in parts of so many bytes."""
    recipe, tally = for_task(Recipe(task="tags", **keys)), Tally()
    files = sources.expand([str(path)], recipe)
    recipe = with_tag_names(files, recipe)
    parts = [part for unit in units.cut_into_units(files, unit_bytes, recipe) for part in unit.ranges]
    return [document for part in parts for document in documents(part, recipe, tally)], recipe, tally


def tags_of(found: list[Document], recipe: Recipe) -> list[tuple[str, list[str]]]:
    """Text and names of tags of each document; each tag must be at a word."""
    named = []
    for document in found:
        assert document.marks is not None
        words = document.text.split(" ")
        for mark in document.marks.stretches:
            assert document.text[mark.begin : mark.end] in words
        named.append((document.text, [recipe.tag_name[mark.first - 1] for mark in document.marks.stretches]))
    return named


@pytest.mark.parametrize("name", ["eng.train", "valid.txt", "ner.conll", "ner.tsv", "ner.iob2.gz"])
@pytest.mark.parametrize("change", ["", "crlf", "tabs", "wide", "bom", "no end", "blank lines"])
def test_columns_of_conll_2003(tmp_path: Path, name: str, change: str) -> None:
    changed = {
        "": CONLL_2003,
        "crlf": CONLL_2003.replace("\n", "\r\n"),
        "tabs": CONLL_2003.replace(" ", "\t"),
        "wide": CONLL_2003.replace(" ", "   ").replace("O\n", "O  \n"),
        "bom": "\ufeff" + CONLL_2003,
        "no end": CONLL_2003.rstrip("\n"),
        "blank lines": CONLL_2003.replace("\n\n", "\n \t\n\n\n"),
    }[change]
    path = tmp_path / name
    path.write_bytes(gzip.compress(changed.encode()) if name.endswith("gz") else changed.encode())
    found, recipe, tally = read(path)
    assert recipe.tag_name == ["O", "I-LOC", "I-MISC", "I-ORG", "I-PER"]
    assert tags_of(found, recipe) == EXPECTED_2003 and not tally.as_dict()["counts"]


def test_columns_of_universal_dependencies(tmp_path: Path) -> None:
    """Words that are written together have no tag, nor have those that are not written; comments are none."""
    (tmp_path / "dev.conllu").write_text(CONLL_U)
    found, recipe, _ = read(tmp_path / "dev.conllu")
    assert recipe.tag_name == ["AUX", "PART", "PUNCT", "SYM", "VERB"]
    assert tags_of(found, recipe) == EXPECTED_U
    found, recipe, _ = read(tmp_path / "dev.conllu", text_field="3", label_field="-6")
    assert tags_of(found, recipe)[0] == ("do not panic , _", ["VB", "RB", "VB", ",", "FW"])


def test_other_columns_are_chosen_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CONLL_2003)
    found, recipe, _ = read(tmp_path / "a.txt", text_field="1", label_field="2")
    assert tags_of(found, recipe)[1] == ("Peter Blackburn", ["NNP", "NNP"])
    (tmp_path / "b.txt").write_text("O Ada\nB-X Lovelace\n")
    found, recipe, _ = read(tmp_path / "b.txt", text_field="-1", label_field="1")
    assert tags_of(found, recipe) == [("Ada Lovelace", ["O", "B-X"])]


def test_words_that_begin_like_comments(tmp_path: Path) -> None:
    """WNUT's hashtags, CoNLL-2000's sign of the pound, a word that is a space, and MultiCoNER's comments."""
    text = "#Brexit\tB-X\nis\tO\n#\tO\n\xa0\tO\n\n#alone\tB-X\n\n# id 1f domain=en\nhm\tO\n\n#note\nso\tO\n"
    (tmp_path / "a.tsv").write_text(text)
    found, recipe, _ = read(tmp_path / "a.tsv")
    assert tags_of(found, recipe) == [
        ("#Brexit is # \xa0", ["B-X", "O", "O"]),
        ("#alone", ["B-X"]),
        ("hm", ["O"]),
        ("so", ["O"]),
    ]


@pytest.mark.parametrize("text", [CONLL_2003, CONLL_2003.replace("\n", "\r\n"), "\n\n" + CONLL_2003 * 3])
def test_parts_of_a_file_give_each_sentence_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    whole, _, _ = read(path)
    for size in range(1, 90):
        parts, _, _ = read(path, size)
        assert [(one.text, one.marks, one.origin) for one in parts] == [
            (one.text, one.marks, one.origin) for one in whole
        ], size


NAMES = ["O", "B-ORG", "B-PER", "I-PER"]
BROKEN = "EU B-ORG\n\nPeter B-PER\n{}\nBlackburn I-PER\n"


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (BROKEN.format("Ada"), {}, r"a\.txt, line 4: has 1 column, and the sentence has 2"),
        (BROKEN.format("Ada B I"), {}, r"a\.txt, line 4: has 3 columns, and the sentence has 2"),
        (BROKEN.format("Ada B-X"), {"tag_name": NAMES}, r"line 4 has the tag 'B-X', and .* 4"),
        ("Prose\nof\nlines\n", {}, r"a\.txt, line 1: has 1 column, and --task tags reads a word and its tag"),
        (BROKEN.format("a b"), {"label_field": "3"}, r"line 1: has 2 columns, and --label-field is 3"),
        (BROKEN.format("a b"), {"text_field": "0"}, r"line 1: has 2 columns, and --text-field is 0"),
        (BROKEN.format("a b"), {"label_field": "ner"}, "column 'ner': .* have numbers"),
        (CONLL_U.replace("2\tn't", "x\tn't"), {}, r"line 6: does not begin with the number of a word"),
        ("%PDF-1.7\n%\x80\n", {}, "holds no columns: by its first bytes it is PDF"),
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_one_line(
    tmp_path: Path, text: str, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises((ValueError, RuntimeError), match=message) as caught:
        made(tmp_path, "a.txt", **keys)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_short_or_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(CONLL_2003.encode() * 99)[:-30])
    with pytest.raises(RuntimeError, match=r"a\.txt\.gz cannot be read: EOFError"):
        made(tmp_path, "a.txt.gz")
    (tmp_path / "b.txt").write_bytes(CONLL_2003.encode("cp1252"))
    report = made(tmp_path, "b.txt")
    assert report.counts["changed.not_utf8"][0] == 1 and report.train.documents == 3


def test_a_sentence_without_an_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a O\n" * 999 + "\n" + CONLL_2003)
    found, recipe, tally = read(tmp_path / "a.txt", max_document_bytes=1024)
    assert tags_of(found, recipe) == EXPECTED_2003
    assert [*tally.as_dict()["counts"]] == ["removed.too_long_document"]


def test_columns_are_of_tags_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CONLL_2003)
    with pytest.raises(ValueError, match=r"--format conll: .* give --task tags"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "o", tokenizer="bytes", recipe=Recipe(format="conll"))


def made(folder: Path, name: str, out: str = "out", workers: int = 1, **keys: Any) -> PrepareReport:
    recipe = Recipe(task="tags", **keys)
    return prepare(
        [str(folder / name)], folder / out, tokenizer="bytes", recipe=recipe, workers=workers, progress=False
    )


def test_many_parts_and_workers_give_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sentence once, whatever the workers; the card and the report state the names of the tags."""
    (tmp_path / "a.txt").write_text("".join(f"Word{number} B-X\npadding O\n\n" for number in range(60)))
    monkeypatch.setattr("data.prepare.prepare._SMALLEST_UNIT_BYTES", 1 << 8)
    report = made(tmp_path, "a.txt", "1/corpus")
    corpus = tmp_path / "1/corpus"
    assert report.train.documents == 60 and report.train.shards > 3 and not verify(corpus)
    made(tmp_path, "a.txt", "2/corpus", workers=2)
    assert tree(corpus) == tree(tmp_path / "2/corpus")
    assert report.tags == json.loads((corpus / "datacard.json").read_text())["settings"]["tag_name"]
    assert "Tags of words: 0 `O`, 1 `B-X`." in (corpus / "datacard.md").read_text()
    assert made(tmp_path, "a.txt", "1/corpus").was_complete
