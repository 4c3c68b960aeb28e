"""A rank under the launchers of others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from whole_runs import consumed, environment, make_corpus, records, write_config

LAUNCHERS = (
    ("torchrun", "--standalone", "--nproc-per-node=2", "-m", "trainer"),
    ("deepspeed", "--num_gpus=1", "--module", "trainer"),
)


@pytest.mark.slow
def test_a_run_under_other_launchers(tmp_path: Path) -> None:
    changes = {"train__steps": 2, "train__eval_every": 0, "checkpoint__every": 0, "model__layers": 1}
    config = write_config(tmp_path, make_corpus(tmp_path, documents=20), **changes)
    programs = Path(sys.executable).parent
    env = {**environment(), "PATH": f"{programs}:{environment()['PATH']}"}
    started = {}
    for name, *options in LAUNCHERS:  # at the same time: most of theirs is waiting for imports
        command = [programs / name, *options, config, f"run_dir={tmp_path / name}"]
        if name == "deepspeed":  # which says no number of threads, where torchrun says 1
            env = {key: value for key, value in env.items() if key != "OMP_NUM_THREADS"}
        started[name] = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    said = {name: process.communicate(timeout=180)[1] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, f"{name}\n{said[name][-4000:]}"
        assert [row["step"] for row in records(tmp_path / name / "metrics.jsonl") if "loss" in row] == [1, 2]
        assert consumed(tmp_path / name) == list(range(16))
    told = [
        line for line in said["deepspeed"].splitlines() if re.search(r"deepspeed: \d+ threads? each \(", line)
    ]
    assert len(told) == 1 and "threads each" not in said["torchrun"]
