"""What runs the tasks of `prepare` does not change a byte; and an engine that is not there is one line.

`test_on_ray.py` has Ray itself. Here an engine does to the tasks what a cluster may do to them.
"""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data.prepare import prepare as command
from data.prepare.duplicates import find
from data.prepare.engines import same_everywhere
from data.prepare.prepare import prepare
from prepared import run, tree, write_texts
from unruly import Unruly

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("deduplicate", ["", "near"])
def test_tasks_that_die_and_run_twice_in_any_order_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deduplicate: str
) -> None:
    texts = write_texts(tmp_path / "texts")
    for name, text in list(texts.items())[:9]:  # copies in other units
        (tmp_path / "texts" / f"{name}.again.txt").write_bytes(text.encode())
    monkeypatch.setattr(find, "_LEAST_DOCUMENTS", 8)
    whole = run(tmp_path, "whole", deduplicate=deduplicate)
    unruly = Unruly(seed=3)

    @contextmanager
    def started(*_: object) -> Iterator[object]:
        yield unruly.run

    monkeypatch.setattr(command, "started", started)
    report = run(tmp_path, "corpus", deduplicate=deduplicate)
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")
    assert report.counts == whole.counts
    assert unruly.died and unruly.twice
    assert not list((tmp_path / "corpus/.prepare").glob("*/*"))


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("slurm", "--on slurm is none of local, ray"),
        ("ray:head-node", "--on ray:head-node is none of local, ray, ray:HOST:PORT"),
        ("ray", r"needs ray, which is not installed: pip install"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, said: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=said):
        prepare([str(tmp_path)], tmp_path / "corpus", tokenizer="bytes", on=on, progress=False)
    assert not (tmp_path / "corpus").exists()


def test_a_cluster_that_is_not_there_is_one_line_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text")
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        on = f"ray:127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"--on {on}: .*refused: start Ray there"):
            prepare([str(tmp_path / "text.txt")], tmp_path / "out", tokenizer="bytes", on=on, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_node_without_the_shared_folder_or_with_other_versions_is_named(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "own").mkdir()
    mark = same_everywhere.leave(tmp_path / "shared")
    same_everywhere.check(mark)
    same_everywhere.leave(tmp_path / "own")
    for scratch in (tmp_path / "own", tmp_path / "none"):
        with pytest.raises(ValueError, match="must be on storage that all nodes share"):
            same_everywhere.check(replace(mark, scratch=scratch))
    older = tuple((name, "0.1" if name == "tokenizers" else version) for name, version in mark.versions)
    with pytest.raises(ValueError, match=r"has tokenizers [\d.]+ and this machine 0\.1"):
        same_everywhere.check(replace(mark, versions=older))


def test_local_processes_import_no_other_engine() -> None:
    code = "import sys, data.prepare.prepare; print('ray' in sys.modules, *filter(None, sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, *modules = done.stdout.split()
    assert imported == "False" and "data.prepare.engines.local" in modules
    assert "data.prepare.engines.on_ray" not in modules
