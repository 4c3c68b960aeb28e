"""A file that is replaced has its old content or its new, and no draft stays behind; lines of files."""

import os
from pathlib import Path

import pytest

from common.files import look_again, read_lines, write_atomically


def test_a_failure_before_the_replacement_keeps_the_old_content_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def refuse() -> None:
        assert set(os.listdir(tmp_path)) == {"a", f".tmp-a-{os.getpid()}"}
        raise RuntimeError("left behind")

    with pytest.raises(RuntimeError, match="left behind"):
        write_atomically(path, b"new", guard=refuse)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_draft_of_a_fixed_name_overwrites_what_a_killed_attempt_left(tmp_path: Path) -> None:
    path, draft = tmp_path / "a", tmp_path / "a.tmp"
    draft.write_bytes(b"half of a longer text")
    write_atomically(path, b"whole", draft=draft)
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["a"]


def test_lines_end_where_a_line_feed_is_and_nowhere_else(tmp_path: Path) -> None:
    """JSON texts may hold characters at which `str.splitlines` would end a line."""
    lines = ["one\u2028two\u2029\x0c\x85", "", '{"a": "\u2028"}', " last "]
    for end in ("\n", "\r\n"):
        for begins in ("", "\ufeff"):
            (tmp_path / "file").write_bytes((begins + end.join(lines) + end).encode())
            assert read_lines(tmp_path / "file") == lines
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^[^\n]*file: cannot be read as text: "):
        read_lines(tmp_path / "file")


def test_looking_again_leaves_nothing_and_makes_nothing(tmp_path: Path) -> None:
    there = tmp_path / "runs" / "mine"
    there.mkdir(parents=True)
    assert look_again(there) and not look_again(there / "mark")
    assert not look_again(tmp_path / "other" / "mark")
    assert [*tmp_path.rglob("*")] == [tmp_path / "runs", there]
