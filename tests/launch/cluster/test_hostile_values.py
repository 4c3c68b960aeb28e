"""Values with spaces, quotes, `$(…)` and the like reach the job as they are, or are refused in one line."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.cluster import submission
from launch.cluster.batch.rank_words import rank_environment, rank_words
from launch.cluster.batch.step import Placement, StepEnd, run_step, srun
from launch.cluster.batch.step_output import StepOutput
from launch.cluster.cluster import Cluster, Container
from launch.cluster.submission import Submission
from launch.local.rank_log import RankLog
from launch.local.signal_inbox import SignalInbox
from trainer.config import reading, yaml_files

HOSTILE = {
    "space": "a b",
    "quote": "it's",
    "quotes": '"a" b"',
    "substitution": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "semicolon": "x; touch pwned",
    "and": "x && touch pwned #",
    "pipe": "x | tee pwned",
    "redirection": "> pwned",
    "variable": "${HOME}$HOME",
    "pattern": "%j%%%x",
    "glob": "*?[a-z]",
    "braces": "{a,b}{1..3}",
    "tilde": "~root",
    "directive": "#SBATCH --wrap=x",
    "bang": "!!",
    "foreign": "größe 漢字",
    "long": "x" * 900,
}
NEEDS_A_LINE = {"newline": "a\ntouch pwned", "return": "a\rb", "tab": "a\tb", "escape": "\x1b[2J"}


def typed(value: str) -> str:
    """The value as YAML that is not interpolated."""
    return json.dumps(value.replace("${", "\\${"))


def words_of(value: str, config: str) -> list[str]:
    """`germinal submit` with the value in every field that takes any text."""
    return [
        *("submit", config, f"--account={value}", f"--qos={value}", f"--constraint={value}"),
        *(f"--partition={value}", f"--modules={value}", f"--container={value}"),
        *(f"--env=VALUE={value}", f"--sbatch=comment={value}", f"track.notes={typed(value)}"),
    ]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_value_reaches_the_job_as_it_is(value, config, slurm, germinal, tmp_path) -> None:
    python = tmp_path / f"bin {value[:90]}" / "python"
    python.parent.mkdir()
    python.write_text("""#!/bin/bash\nprintf '%s\\0' "$@" "$PYTHONPATH" > "$RECORD/python.called"\n""")
    python.chmod(0o755)
    # Into a folder of that name, too; a container's mounts cannot have a comma.
    run_dir = tmp_path / "runs" / value[:90].replace(",", "_")
    code, _, err = germinal(*words_of(value, config), f"--python={python}", f"run_dir={typed(str(run_dir))}")
    assert code == 0, err

    (sent,) = slurm.calls("sbatch")
    options, script = sent[: sent.index("--")], sent[sent.index("--") + 1 :]
    for name in ("account", "qos", "constraint", "partition", "comment"):
        assert f"--{name}={value}" in options
    folder = run_dir / "submit/1"
    assert f"--output={str(folder).replace('%', '%%')}/log-%j.txt" in options
    assert script == [str(folder / "script.sh"), str(folder), str(python), str(folder / "code"), value]

    sub = submission.read(folder)
    found = (sub.cluster.modules, sub.cluster.env, sub.cluster.container.image)
    assert found == ([value], {"VALUE": value}, value)
    assert reading.load(sub.config).track.notes == value

    record = {"RECORD": str(slurm.folder), "BASH_FUNC_module%%": MODULE, "PATH": os.environ["PATH"]}
    done = subprocess.run(script, env=record, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    started = (slurm.folder / "python.called").read_text().split("\0")
    assert started == ["-P", "-m", "launch.cluster.batch", str(folder), str(folder / "code"), ""]
    assert (slurm.folder / "module.called").read_text() == f"load\0{value}\0"
    assert not list(tmp_path.rglob("pwned*"))


RANK = ["-P", "-m", "launch.cli", "rank"]
SRUN = """#!/bin/bash\nprintf '%s\\0' "$@" "$VALUE" > "$(dirname "$0")/srun.called"\n"""


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("runtime", ["", "apptainer", "pyxis"])
def test_a_value_reaches_the_ranks_as_it_is(runtime, value, slurm, tmp_path) -> None:
    """From the batch step, by srun, also where the ranks run in a container."""
    (slurm.folder / "srun").write_text(SRUN)
    (slurm.folder / "srun").chmod(0o755)
    image = value if runtime else ""
    container = Container(image=image, runtime=runtime or "apptainer", mounts=[value], python=value)
    cluster = Cluster(nodes=2, nproc=1, container=container, env={"VALUE": value}, gpus_per_node="1")
    at = str(tmp_path)
    sub = Submission("tiny", at, at, value, f"{value}/config.yaml", f"{value}/python", "", cluster)
    where = Placement(("n1", "n2"), nproc=1)
    signals, output = SignalInbox([]), StepOutput(2, lambda rank: RankLog(tmp_path / "log", lambda: True))
    try:
        environ = rank_environment(sub, os.environ)
        end = run_step(srun(where, *rank_words(sub)), environ, where, output, signals)
    finally:
        signals.close()
        output.close()
    assert end == StepEnd(0)
    *words, seen, _ = (slurm.folder / "srun.called").read_text().split("\0")
    options, words = words[: words.index("--")], words[words.index("--") + 1 :]
    mounts = [f"{value}:{value}", f"{at}:{at}", value]
    expected = [value, *RANK, f"{value}/config.yaml"]
    if runtime == "apptainer":
        binds = [f"--bind={mount}" for mount in mounts]
        expected = ["apptainer", "exec", f"--pwd={value}", *binds, "--nv", value, *expected]
    elif runtime == "pyxis":
        added = [f"--container-image={value}", f"--container-workdir={value}"]
        assert options[-3:] == [*added, f"--container-mounts={','.join(mounts)}"]
    else:
        expected[0] = f"{value}/python"
    assert (words, seen) == (expected, value)
    assert not list(tmp_path.rglob("pwned*"))


MODULE = """() { printf '%s\\0' "$@" > "$RECORD/module.called"; }"""


def test_the_record_of_injections_can_fail(config, slurm, germinal, tmp_path) -> None:
    """A script that passes its arguments through a shell once more is seen by the test above."""
    germinal("submit", config, "--modules=$(touch pwned)")
    script = Path("runs/tiny/submit/1/script.sh")
    script.write_text(script.read_text().replace('module load "$name"', "eval module load $name"))
    env = {"RECORD": str(slurm.folder), "BASH_FUNC_module%%": MODULE, "PATH": os.environ["PATH"]}
    subprocess.run([script, "x", "true", "", "$(touch pwned)"], env=env, cwd=tmp_path, timeout=30)
    assert list(tmp_path.rglob("pwned*"))


@pytest.mark.parametrize("value", NEEDS_A_LINE.values(), ids=NEEDS_A_LINE)
@pytest.mark.parametrize("field", ["account", "qos", "constraint", "partition", "sbatch=comment"])
def test_what_sbatch_cannot_hold_is_refused(field, value, config, slurm, germinal) -> None:
    code, line = germinal.refusal("submit", config, f"--{field}={value}")
    assert code == 2 and field.split("=")[0] in line and repr(value) in line
    assert not slurm.calls("sbatch")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["name=a b"], "name='a b'"),
        (["name=$(id)"], "name='$(id)'"),
        (["--modules=-x"], "modules: '-x'"),
        (["--modules=a\nb"], "modules: 'a\\nb'"),
        (["--env=A B=x"], "env.'A B'"),
        (["--env=A"], "--env 'A': not NAME=VALUE"),
        (["--env=A=\0"], "NUL"),
        (["--sbatch=a b=x"], "sbatch.'a b'"),
        (["--sbatch=$(id)"], "sbatch.'$(id)'"),
        (["--gpus-per-node=8; id"], "gpus_per_node='8; id'"),
        (["--memory=$(id)"], "memory='$(id)'"),
        (["--time=90s"], "time='90s'"),
        (["run_dir=a\\b"], "backslash"),
        (['run_dir="a\\nb"'], "control character"),
        (["run_dir=a:b"], "PYTHONPATH"),
        (["run_dir=a,b", "--container=x"], "comma"),
        (["--container=--bind=/"], "an image, not an option"),
    ],
)
def test_what_nothing_can_hold_is_refused(words, names, config, slurm, germinal) -> None:
    code, line = germinal.refusal("submit", config, *words)
    assert code == 2 and names in line
    assert not slurm.calls("sbatch")


def test_more_than_an_argument_holds_is_refused(config, slurm, germinal) -> None:
    code, line = germinal.refusal("submit", config, f"--sbatch=comment={'x' * 140_000}")
    assert code == 1 and "Argument list too long" in line and len(line) < 300
    assert not list(Path("runs/tiny/submit").glob("[0-9]*"))


@pytest.mark.parametrize(
    "value", [*HOSTILE.values(), "a\nb", "$(POD)$$(x)"], ids=[*HOSTILE, "newline", "own"]
)
def test_a_manifest_holds_the_value_as_it_is(value, config, slurm, germinal) -> None:
    words = [
        "submit",
        config,
        "--backend=kubernetes",
        "--dry-run",
        f"--container={value}",
        f"--env=VALUE={value}",
    ]
    Path("k8s.yaml").write_text(yaml_files.write({"kubernetes": {"claim": value, "mount": value}}))
    code, out, err = germinal(*words, "--cluster=k8s.yaml", f"track.notes={typed(value)}")
    assert code == 0, err
    config_map, _, job = yaml.safe_load_all(out)
    pod = job["spec"]["template"]["spec"]
    (ranks,) = pod["containers"]
    assert ranks["image"] == ranks["workingDir"] == value
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == value
    assert [(one["name"], expanded(one["value"])) for one in ranks["env"]] == [("VALUE", value)]
    Path("config.yaml").write_text(config_map["data"]["config.yaml"])
    assert reading.load("config.yaml").track.notes == value


def expanded(value: str) -> str:
    """What Kubernetes makes of a variable's value where POD, x and HOME are set (API reference:
    EnvVar.value).
    """
    known = {"POD": "WRONG", "x": "WRONG", "HOME": "WRONG", "touch pwned": "WRONG"}
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else known.get(m[1], m[0]), value)
