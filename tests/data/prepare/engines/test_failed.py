"""A `prepare` whose engine failed: without work done it leaves no folder, else the line says that the work is
kept, and the same command goes on with it, on any engine.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.prepare import prepare as command
from data.prepare.engines import on_ray, same_everywhere
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from data.prepare.units import Unit
from fake_ray import HEAD, FakeRay, RayError, Reference
from prepared import tree, write_texts
from unruly import in_order

pytestmark = pytest.mark.usefixtures("no_pictures")

# Notes each call; its process dies while the file "dies" is there and so many units are finished.
HOOK = """
import os
from pathlib import Path

def unchanged(text):
    here = Path(__file__).parent
    with open(here / "calls", "a") as calls:
        calls.write("x")
    if (here / "dies").exists() and len(list(here.glob("out/.prepare/units/*.json"))) >= 3:
        os._exit(9)
    return text
"""


def run(tmp_path: Path, workers: int, out: str = "out") -> None:
    recipe = Recipe(shard_bytes=8 << 10, scrub_hook="dying:unchanged")
    given: dict[str, Any] = {"tokenizer": "bytes", "workers": workers, "recipe": recipe, "progress": False}
    prepare([str(tmp_path / "texts")], tmp_path / out, **given)


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (tmp_path / "dying.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("dying", None)
    return len(write_texts(tmp_path / "texts"))


def calls(tmp_path: Path) -> int:
    """How often the hook was called since the last look."""
    count = (tmp_path / "calls").stat().st_size
    (tmp_path / "calls").unlink()
    return count


def test_a_killed_worker_leaves_finished_work_and_the_line_says_so(tmp_path: Path, texts: int) -> None:
    (tmp_path / "dies").touch()
    with pytest.raises(RuntimeError, match=rf"was killed .*, and it goes on: {tmp_path}/out/.prepare keeps"):
        run(tmp_path, workers=2)
    (tmp_path / "dies").unlink()
    calls(tmp_path)
    run(tmp_path, workers=1)
    assert calls(tmp_path) < texts
    run(tmp_path, workers=1, out="whole/out")
    assert calls(tmp_path) == texts
    assert tree(tmp_path / "out") == tree(tmp_path / "whole/out")


@pytest.mark.parametrize("finished", [0, 3])
def test_an_engine_that_fails_leaves_no_more_than_there_is_to_keep(
    tmp_path: Path, texts: int, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    def fails(function: Any, preparation: Any, tasks: Any, advance: Any) -> None:
        in_order(function, preparation, tasks[:finished], advance)
        raise RuntimeError("the cluster is gone")

    @contextmanager
    def started(*_: object) -> Iterator[object]:
        yield fails

    with monkeypatch.context() as patch:
        patch.setattr(command, "started", started)
        with pytest.raises(RuntimeError, match="the cluster is gone"):
            run(tmp_path, workers=1)
    assert (tmp_path / "out").exists() == bool(finished)
    done = calls(tmp_path) if finished else 0
    run(tmp_path, workers=1)
    assert calls(tmp_path) == texts - done


def test_what_was_written_after_a_command_was_given_up_is_not_taken_for_finished(
    tmp_path: Path, texts: int
) -> None:
    """As a task on another machine may do, of a command with other settings."""
    late = tmp_path / "out/.prepare/units/000000.json"
    late.parent.mkdir(parents=True)
    late.write_text('{"segments": []}')
    run(tmp_path, workers=1)
    run(tmp_path, workers=1, out="whole/out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole/out")


def run_on(ray: FakeRay, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Run a few tasks on it."""
    monkeypatch.setitem(sys.modules, "ray", ray)
    mark = same_everywhere.leave(scratch)
    on_ray._run(0, mark, print, None, [Unit(number, ()) for number in range(8)], print)


def test_processes_of_a_task_that_die_each_time_end_the_command_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "_connect", lambda *_: None)
    ray = FakeRay(3, lambda task: Reference(task.number == 1, RayError("killed\nat length")))
    said = rf"task 1 has died 9 times .*: killed; run .*, and it goes on: {tmp_path} keeps what is finished$"
    with pytest.raises(RuntimeError, match=said):
        run_on(ray, monkeypatch, tmp_path)
    assert ray.cancelled == 5  # of 6 that are handed out at a time


def test_a_head_that_is_gone_ends_the_command_with_a_line_and_one_that_comes_back_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself ends the process after a minute, without a word of where the work is."""
    looks: list[str] = []

    def connect(address: str, seconds: float) -> None:
        looks.append(address)
        if len(looks) in (2, 3) or len(looks) > 4:
            raise ConnectionRefusedError("refused")

    monkeypatch.setattr(on_ray, "_connect", connect)
    monkeypatch.setattr(on_ray, "_COUNT_CORES_SECONDS", -1.0)
    said = rf"head at {HEAD} is gone \(refused\): start Ray again, .* which goes on: {tmp_path} keeps"
    with pytest.raises(RuntimeError, match=said):
        run_on(FakeRay(2, lambda task: Reference(False)), monkeypatch, tmp_path)
    assert looks == [HEAD] * 7


def test_handing_out_takes_time_in_proportion_to_the_tasks_however_many_are_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait looks at all that are handed out: on 500 cores, at a thousand for each of the tasks."""
    monkeypatch.setattr(on_ray, "_connect", lambda *_: None)
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay(500))
    done: list[int] = []
    tasks = [Unit(number, ()) for number in range(5000)]
    on_ray._run(0, same_everywhere.leave(tmp_path), note, done, tasks, lambda size_bytes: None)
    assert sorted(done) == list(range(5000))
    assert ray.looked_at <= 4 * len(tasks)


def note(done: list[int], task: Unit, advance: Any) -> None:
    done.append(task.number)
