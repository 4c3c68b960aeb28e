"""`prepare --on ray`: a Ray that the command starts, and clusters of which a node or the head is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.processes import stat
from prepared import tree, write_texts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

# Of a cluster of the test's own; Ray would store a token in the user's home.
ALONE = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}

SCRIPT = """
import sys, time
from pathlib import Path
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
if __name__ == "__main__":
    source, out, on, workers = sys.argv[1:]
    recipe = Recipe(shard_bytes=24 << 10, deduplicate="near", scrub_hook="slowly:unchanged")
    prepare([source], Path(out), train_tokenizer=500, heldout=0.1, workers=int(workers), on=on,
            progress=False, recipe=recipe)
"""

# Each text takes a while, so that a node can die while it works.
HOOK = """
import time
def unchanged(text):
    time.sleep(0.01)
    return text
"""


def start(tmp_path: Path, out: str, on: str, workers: int) -> subprocess.Popen:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "slowly.py").write_text(HOOK)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "texts", tmp_path / out, on, str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, cwd=os.getcwd(), env=environment(tmp_path))


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **ALONE, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}


def end(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=500)
    assert process.returncode == 0, error.decode()


def until(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Wait until the folder has so many more records of units."""
    count += len(list(folder.glob("*.json")))
    while process.poll() is None and len(list(folder.glob("*.json"))) < count:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1].decode()


def test_ray_on_this_machine_and_two_nodes_of_which_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts", count=600)
    end(start(tmp_path, "whole", "local", 1))
    whole = tree(tmp_path / "whole")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        for killed_in in ("survey", "units"):
            out = f"killed_in_{killed_in}"
            process = start(tmp_path, out, f"ray:{cluster.address}", 0)
            until(process, tmp_path / out / ".prepare" / killed_in, 3)
            cluster.remove_node(second, allow_graceful=False)
            end(process)
            assert tree(tmp_path / out) == whole
            second = cluster.add_node(**node)
    finally:
        cluster.shutdown()


def test_a_head_that_is_killed_ends_the_command_and_this_machine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts", count=300)
    end(start(tmp_path, "whole/out", "local", 1))
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    said = f"Ray's head at {cluster.address} is gone"
    try:
        process = start(tmp_path, "out", f"ray:{cluster.address}", 0)
        until(process, tmp_path / "out/.prepare/survey", 2)
        cluster.remove_node(cluster.head_node, allow_graceful=False)
        _, error = process.communicate(timeout=500)
        assert said in error.decode() and f"{tmp_path}/out/.prepare keeps what is finished" in error.decode()
    finally:
        cluster.shutdown()
    assert len(list((tmp_path / "out/.prepare/survey").glob("*.json"))) >= 2
    end(start(tmp_path, "out", "local", 1))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole/out")


def test_a_command_that_is_killed_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=300)
    end(start(tmp_path, "whole", "local", 1))
    for how in (signal.SIGKILL, signal.SIGINT):
        process = start(tmp_path, "corpus", "ray", 2)
        until(process, tmp_path / "corpus/.prepare/survey", 2)
        family = family_of(tmp_path)
        assert len(family) > 4
        process.send_signal(how)
        process.communicate(timeout=300)
        deadline = time.monotonic() + 120
        while any(map(alive, family)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in family if alive(pid)]
    end(start(tmp_path, "corpus", "ray", 2))
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")


def family_of(tmp_path: Path) -> list[int]:
    """Every process with the environment of `start`: Ray's are no children of the command."""
    found, mark = [], str(tmp_path).encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    found = stat(pid)
    return found is not None and not found.has_ended
