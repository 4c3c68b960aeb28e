"""Embedded corpora: each is prepared by its name alone, twice the same, with classes, pairs or pictures."""

from __future__ import annotations

import io
import json
import os
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.corpus.manifest import read_manifest
from data.prepare.embedded import bytecode, pictures, proteins, python_sources
from data.prepare.embedded.names import EMBEDDED
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.verify.verify import verify
from prepared import texts_in, tree

pytestmark = pytest.mark.usefixtures("no_pictures")
FUNCTION = '''
@decorated
def number_{n}(a, b):
    """Give the number {n}, or more where a or b is given.

    It is a number.
    """
    return {n} + (a or 0) + (b or 0)
'''


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few documents of each kind, and a standard library of two packages and a module."""
    monkeypatch.setattr(pictures, "_SCRIPTS", ("GREEK", "HEBREW"))
    monkeypatch.setattr(pictures, "_MOST_LETTERS", 3)
    monkeypatch.setattr(pictures, "_DRAWN_TIMES", 1)
    monkeypatch.setattr(proteins, "FAMILIES", 2)
    monkeypatch.setattr(proteins, "_SEQUENCES", 40)
    library = tmp_path / "library"
    for name, count in (("numbers/all.py", 60), ("few/all.py", 5), ("module.py", 8), ("tests/all.py", 70)):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("".join(FUNCTION.format(n=n) for n in range(count)))
    lengths = (
        f"def varied_{n}(a, b):\n" + "    a = b.following(a)\n" * n + "    return a\n" for n in range(5, 40)
    )
    (library / "numbers" / "varied.py").write_text("".join(lengths))
    (library / "numbers" / "old.py").write_text("print 'two'\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))


def made(name: str, out: Path, **settings: object) -> Path:
    prepare([f"embedded:{name}"], out, workers=1, progress=False, recipe=Recipe(**settings))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("name", EMBEDDED)
def test_each_is_whole_and_the_same_when_made_again(tmp_path: Path, name: str) -> None:
    first, again = made(name, tmp_path / "first"), made(name, tmp_path / "again")
    assert tree(first) == tree(again)
    assert not verify(first)
    assert {path.name for path in first.iterdir()} >= {"train", "heldout"}
    assert not (first / ".prepare" / "embedded").exists()
    assert prepare([f"embedded:{name}"], first, workers=1, progress=False).was_complete


def test_classes_pairs_and_captions(tmp_path: Path) -> None:
    found = {name: made(name, tmp_path / name) / "train" for name in EMBEDDED}
    manifests = {name: read_manifest(path) for name, path in found.items()}
    assert manifests["proteins"].classes == ("family-00", "family-01")
    assert manifests["glyphs"].classes == ("greek", "hebrew")
    assert manifests["digits"].classes == tuple("0123456789")
    assert manifests["glyphs"].media == manifests["digits"].media == ("png",)
    assert manifests["docstrings"].columns == ("first_text",)
    assert manifests["python"].classes == ("numbers",)  # `few` has too few functions, a module is no package
    assert manifests["packages"].classes == ("numbers",)  # the same code in `few` is there once
    assert manifests["bytecode"].classes == ("numbers",)  # the others' functions are too short
    captions = {text for _, text in texts_in(found["glyphs"])}
    assert captions <= {
        *("greek capital letter heta", "greek small letter heta", "greek capital letter archaic sampi"),
        *("hebrew letter alef", "hebrew letter bet", "hebrew letter gimel"),
    }
    assert {text for _, text in texts_in(found["digits"])} >= {"digit zero", "digit nine"}
    residues = "".join(text for _, text in texts_in(found["proteins"]))
    assert set(residues) == set(proteins.RESIDUES)


def test_a_docstring_and_its_code_make_a_pair_without_the_docstring(tmp_path: Path) -> None:
    python_sources.write_docstrings(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "docstrings.jsonl").read_text().splitlines()]
    assert len(rows) == 60 + 5 + 8
    assert rows[0]["text"].startswith("Give the number 0") and rows[0]["text"].endswith("It is a number.")
    assert rows[0]["code"] == "@decorated\ndef number_0(a, b):\n    return 0 + (a or 0) + (b or 0)"


COMPILED = """
def {called}(a, b):
    a.{name}(b); a.{name}(b); a.{name}(b); a.{name}(b); a.{name}(b); a.{name}(b)
    return {constant}
"""


def test_compiled_functions_that_differ_in_what_has_no_letter_are_one(tmp_path: Path) -> None:
    """A constant, the function's own name, and a name that one package alone uses, have none."""
    library = tmp_path / "library"
    for package, name, constant in (
        *(("one", "private", "'x'"), ("one", "own", "'y'"), ("one", "shared", "'x'")),
        *(("two", "shared", "'z'"), ("two", "also", "'z'"), ("three", "also", "'z'")),
    ):
        (library / package).mkdir(exist_ok=True)
        code = COMPILED.format(called=f"{package}_{name}", name=name, constant=constant)
        (library / package / f"{name}.py").write_text(code)
    rows = bytecode.lettered(
        [each for each in bytecode.functions() if each.path[:3] in ("one", "two", "thr")]
    )
    assert sorted(each.name for each in rows.values()) == ["one_own", "one_shared", "three_also"]
    assert all(len(text) >= 16 for text in rows)


def test_the_largest_packages_are_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(python_sources, "_LARGEST", 1)
    python_sources.write_largest(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "functions.jsonl").read_text().splitlines()]
    assert {row["package"] for row in rows} == {"numbers"}
    assert len(rows) == 60 + 35 == len({row["text"] for row in rows})
    assert not any("Give the number" in row["text"] for row in rows)


def test_installed_packages_are_not_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are many, and another program may remove one meanwhile."""
    (tmp_path / "library" / "site-packages" / "package").mkdir(parents=True)
    looked_into, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_into.append(str(path)) or scandir(path))
    python_sources.write_docstrings(tmp_path)
    assert len(looked_into) > 2 and not any("site-packages" in path for path in looked_into)


def test_pictures_hold_their_letters_inside(tmp_path: Path) -> None:
    pictures.write_glyphs(tmp_path / "glyphs")
    pictures.write_digits(tmp_path / "digits")
    seen = 0
    for path in sorted(tmp_path.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".png"):
                    continue
                content = tar.extractfile(member)
                assert content is not None
                ink = 255 - np.asarray(Image.open(io.BytesIO(content.read())).convert("L")).astype(int)
                assert ink.shape == (pictures.SIZE, pictures.SIZE) and ink.max() > 200, (path, member.name)
                if "glyphs" in path.parts:
                    edge = ink.copy()
                    edge[1:-1, 1:-1] = 0
                    assert not edge.any(), (path, member.name)
                seen += 1
    assert seen > 100


def test_half_of_a_protein_is_its_familys_motifs(tmp_path: Path) -> None:
    proteins.write_families(tmp_path)
    for file in sorted(tmp_path.rglob("*.fasta")):
        lines = file.read_text().splitlines()[1::2]
        pieces = [line[at : at + 8] for line in lines for at in range(0, len(line), 8)]
        known = [piece for piece in pieces if pieces.count(piece) > 5]
        assert len(set(known)) == 3
        assert 0.5 * 0.9**8 * 0.7 < len(known) / len(pieces) < 0.5  # whole, where nothing was changed


def test_settings_that_are_given_win_and_others_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(
        ["embedded:proteins"],
        out,
        tokenizer="bytes",
        heldout=0.5,
        workers=1,
        progress=False,
        recipe=Recipe(label_folder=-1),
    )
    manifests = {side: read_manifest(out / side) for side in ("train", "heldout")}
    assert manifests["train"].tokenizer.vocab == 257 and manifests["heldout"].documents > 20
    for sources, reason in (
        (["embedded:nothing"], "embedded:nothing is not there: give one of python, packages, bytecode"),
        (["embedded:digits", "x"], "embedded:digits is prepared alone"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepare(sources, tmp_path / "none", workers=1, progress=False)
    assert not (tmp_path / "none").exists()
