"""The same command over a corpus that an earlier version finished says that it is done."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare.report.outcome import PrepareReport
from prepared import made, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


def as_the_first_version(out: Path, facts: list[tuple], **settings: object) -> None:
    """Makes the plan of a finished corpus one of the first version, which hashed (source, path, kind, bytes,
    time) of each file, kept no version, and did not know the settings that came later.
    """
    path = out / ".prepare/plan.json"
    plan = json.loads(path.read_text())
    plan.pop("version", None)
    for later in ("encoding", "merge_splits", "split_at", "split_lines", "ids_field", "template"):
        plan["settings"].pop(later, None)
    plan["settings"] |= settings
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode())
    path.write_text(json.dumps({**plan, "input": digest.hexdigest()}))


def facts_of(source: str, kind: str, path: Path) -> tuple:
    return (source, path.name, kind, path.stat().st_size, path.stat().st_mtime_ns)


def test_a_finished_corpus_of_json_files(tmp_path: Path) -> None:
    """Which the first version took for text, and the second for what they hold."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.json").write_text(json.dumps([{"text": "in an array"}]))
    (tmp_path / "in/b.jsonl").write_bytes(rows("in a line"))
    out = tmp_path / "out"
    again: Callable[[], PrepareReport] = lambda: made(tmp_path / "in", "bytes", out)  # noqa: E731
    assert not again().was_complete
    for kind in ("text", "json"):
        kinds = (("a.json", kind), ("b.jsonl", "jsonl"))
        as_the_first_version(out, [facts_of("in", kind, tmp_path / "in" / name) for name, kind in kinds])
        assert again().was_complete and again().by_another_version
        plan = json.loads((out / ".prepare/plan.json").read_text())
        (out / ".prepare/plan.json").write_text(json.dumps({**plan, "version": 2}))
    (tmp_path / "in/a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"with other settings \(the source files themselves\)"):
        again()


def test_a_finished_corpus_with_a_heldout_set(tmp_path: Path) -> None:
    """Of a single text, which the first version cut, and held out by the hash of the parts."""
    book = tmp_path / "book.txt"
    book.write_text("a line of it\n" * 100)
    again: Callable[[float], PrepareReport] = lambda share: made(  # noqa: E731
        book, "bytes", tmp_path / "out", heldout=share
    )
    assert not again(0.1).was_complete and again(0.1).was_complete
    as_the_first_version(tmp_path / "out", [facts_of("book", "text", book)], heldout_by="document")
    report = again(0.1)
    assert report.was_complete and report.heldout is not None
    with pytest.raises(ValueError, match=r"with other settings \(--heldout: 0.1 → 0.2"):
        again(0.2)


def test_a_finished_corpus_of_what_is_refused_now(tmp_path: Path) -> None:
    """A text of more than max_document_bytes, and several splits, were read without a question."""
    (tmp_path / "in").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "in" / name).write_bytes(rows(name))
    (tmp_path / "in/a.txt").write_text("words " * 1000)
    out, source = tmp_path / "out", tmp_path / "in"
    made(source, "bytes", out, merge_splits=True)
    paths = [(source / "a.txt", "text"), (source / "test.jsonl", "jsonl"), (source / "train.jsonl", "jsonl")]
    facts = [facts_of("in", kind, path) for path, kind in paths]
    as_the_first_version(out, facts, max_document_bytes=4096)
    assert made(source, "bytes", out, max_document_bytes=4096).was_complete
    with pytest.raises(ValueError, match="in holds the splits test, train"):
        made(source, "bytes", tmp_path / "new", max_document_bytes=4096)
