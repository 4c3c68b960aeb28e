"""`prepare` that is killed, runs out of room or is started twice: nothing looks whole that is not, and no
byte changes.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.corpus import shards
from data.prepare import command_record
from data.prepare.prepare import prepare
from prepared import by_webdataset, made, run, tree, write_texts

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return write_texts(tmp_path / "texts")


class Killed(BaseException):
    """Not an Exception, so that no handler of the program's can take it for one of its own."""


def crash_at(monkeypatch: pytest.MonkeyPatch, rename: int) -> Callable[[], int]:
    """The process "dies" just before its n-th rename, at 0 never; returns how many it came to."""
    real, count = os.replace, 0

    def replace(source: object, target: object) -> None:
        nonlocal count
        count += 1
        if count == rename:
            raise Killed
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    return lambda: count


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_before_any_rename_leaves_nothing_that_looks_whole(
    stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is closed by one rename, so dying before each of them in turn is dying everywhere. At a
    larger stride, only before some of them and before the last two.
    """
    write_texts(tmp_path / "texts", count=12)
    settings = {"filters": ["gopher_repetition"], "deduplicate": "exact", "shard_bytes": 6 << 10}
    with monkeypatch.context() as patch:
        reached = crash_at(patch, 0)
        run(tmp_path, "whole", **settings)
    renames = reached()
    assert renames > 30
    whole = tree(tmp_path / "whole")
    for rename in sorted({*range(1, renames + 1, stride), renames - 1, renames}):
        out = f"crash{rename}"
        with monkeypatch.context() as patch:
            reached = crash_at(patch, rename)
            with contextlib.suppress(Killed):
                run(tmp_path, out, **settings)
            assert reached() >= rename
        train = tmp_path / out / "train"
        if (train / "manifest.json").exists():
            assert tree(tmp_path / out) == whole
        run(tmp_path, out, **settings)
        assert tree(tmp_path / out) == whole, f"after dying before rename {rename}"


def test_finished_shards_are_not_done_again(
    tmp_path: Path, texts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = shards.TokenShardWriter.close

    def close(writer: shards.TokenShardWriter) -> object:
        entry = real(writer)
        made.append(entry.file)
        if len(made) == 5:
            raise Killed
        return entry

    monkeypatch.setattr(shards.TokenShardWriter, "close", close)
    with pytest.raises(Killed):
        run(tmp_path, "corpus")
    run(tmp_path, "corpus")
    assert len(set(made)) > 8
    assert len(made) - len(set(made)) <= 2  # the two sides of the one unit that was open


def test_one_long_stream_resumes_within_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed file is one unit however long it is; its finished shards are kept all the same."""
    import gzip

    texts = write_texts(tmp_path / "raw", count=80)
    (tmp_path / "texts").mkdir()
    with gzip.open(tmp_path / "texts/all.jsonl.gz", "wt") as file:
        for number, text in enumerate(texts.values()):
            file.write(json.dumps({"text": text}) + "\n" + ("not json\n" if number % 9 == 0 else ""))
    whole = run(tmp_path, "whole")
    assert whole.counts["removed.not_json"][0] == 9
    made = []
    real = shards.TokenShardWriter.close

    def close(writer: shards.TokenShardWriter) -> object:
        made.append(writer.path.name)
        if len(made) == 6:
            raise Killed
        return real(writer)

    monkeypatch.setattr(shards.TokenShardWriter, "close", close)
    with pytest.raises(Killed):
        run(tmp_path, "corpus")
    resumed = run(tmp_path, "corpus")
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")
    assert resumed.counts == whole.counts
    assert len(made) - len(set(made)) <= 2


def test_a_second_run_does_nothing(tmp_path: Path, texts: dict) -> None:
    first = run(tmp_path, "corpus")
    left = tmp_path / "corpus/.prepare/survey/000000.arrow"  # as a kill after the last manifest may leave
    left.parent.mkdir()
    left.touch()
    second = run(tmp_path, "corpus")
    assert not left.parent.exists()
    assert second.was_complete and not first.was_complete and not second.by_another_version
    assert second.train == first.train


def test_an_unfinished_prepare_of_another_version_is_refused_and_a_finished_one_is_not(
    tmp_path: Path, texts: dict
) -> None:
    run(tmp_path, "corpus")
    path = tmp_path / "corpus/.prepare/plan.json"
    plan = json.loads(path.read_text())
    del plan["version"]
    path.write_text(json.dumps(plan))
    again = run(tmp_path, "corpus")
    assert again.was_complete and again.by_another_version
    for older in ({}, {"version": command_record.VERSION - 1}):
        path.write_text(json.dumps({**plan, **older, "complete": False}))
        with pytest.raises(ValueError, match=r"begun by another version of this program: remove .*corpus"):
            run(tmp_path, "corpus")
    path.write_text(json.dumps({**plan, "version": command_record.VERSION, "complete": False}))
    command_record.begin(path.parent, json.loads(path.read_text()), tmp_path / "corpus")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, texts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full)
        with pytest.raises(RuntimeError, match="corpus: No space left on device: make room and run") as error:
            prepare(
                [str(tmp_path / "texts")], tmp_path / "corpus", tokenizer="bytes", workers=1, progress=False
            )
    one_line(error)
    prepare([str(tmp_path / "texts")], tmp_path / "corpus", tokenizer="bytes", workers=1, progress=False)
    assert len(by_webdataset(tmp_path / "corpus")) == len(texts)


def test_two_at_once_are_refused(tmp_path: Path, texts: dict) -> None:
    with (
        command_record.hold_folder(tmp_path / "corpus", tmp_path / "corpus/.prepare"),
        pytest.raises(RuntimeError, match="another prepare is at work"),
    ):
        run(tmp_path, "corpus")


# What is wrong, in one line


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_source_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a hook that stands for another program."""
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"text": "a line"}) + "\n")
    os.utime(log, (1, 1))
    code = f"def add(text):\n    with open({str(log)!r}, 'a') as log: log.write('{{}}\\n')\n    return text\n"
    (tmp_path / "another_program.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"log.jsonl was written to while it was read \(19 bytes before, 22"
    ):
        made(log, "bytes", tmp_path / "corpus", scrub_hook="another_program:add")
    assert not (tmp_path / "corpus/manifest.json").exists()


def test_a_prepare_that_came_to_nothing_does_not_refuse_the_corrected_command(tmp_path: Path) -> None:
    lines = [json.dumps({"doc": {"body": f"document {number}"}}) for number in range(8)]
    (tmp_path / "nested.jsonl").write_text("\n".join(lines))
    source, out = tmp_path / "nested.jsonl", tmp_path / "corpus"
    for field, settings in {
        "text": {},
        "doc": {"deduplicate": "exact"},  # a survey too
        "doc.body": {"min_characters": 100},
    }.items():
        with pytest.raises(ValueError, match="no document is left of"):
            made(source, "bytes", out, text_field=field, **settings)
        assert not out.exists()
    with pytest.raises(ValueError, match="no document of 8 is held out"):
        made(source, "bytes", out, text_field="doc.body", heldout=1e-9)
    assert made(source, "bytes", out, text_field="doc.body", heldout=0.4).train.documents > 0


def test_only_work_that_is_worth_something_refuses_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, not ended: at the first field nothing was read, at the second something was."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "one"}) + "\n")
    source, out = tmp_path / "rows.jsonl", tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr("data.prepare.prepare.finish", lambda *_, **__: (_ for _ in ()).throw(Killed))
        for field in ("text", "body"):
            with pytest.raises(Killed):
                made(source, "bytes", out, text_field=field)
    with pytest.raises(ValueError, match="holds an unfinished prepare with other settings"):
        made(source, "bytes", out, text_field="body", min_characters=2)
    assert made(source, "bytes", out, text_field="body").train.documents == 1
