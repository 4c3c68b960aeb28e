"""The command line from outside: quick help, and one line for each mistake."""

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import cli
from launch.job import Job
from launch.local import keep_running
from whole_runs import ASCII, failure

GERMINAL = str(Path(sys.executable).with_name("germinal"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["prepare", "--help"],
        ["data", "inspect", "--help"],
        ["data", "verify", "--help"],
        ["generate", "--help"],
        ["verify", "--help"],
        ["config", "--help"],
        ["checkpoint", "--help"],
        ["checkpoint", "list", "--help"],
        ["checkpoint", "verify", "--help"],
    ],
)
def test_help_answers_without_anything_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from launch import cli\n"
        "try:\n"
        "    code = cli.main(sys.argv[1:])\n"
        "except SystemExit as leaving:\n"
        "    code = leaving.code\n"
        "heavy = {'torch', 'numpy', 'omegaconf', 'rich', 'wandb', 'webdataset'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "germinal" in done.stdout


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run([GERMINAL, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"germinal {importlib.metadata.version('germinal')}\n"


def test_help_in_a_terminal_that_knows_ascii_only() -> None:
    done = subprocess.run([GERMINAL, "--help"], env=ASCII, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokenised, indexed shards" in done.stdout and "→" in done.stdout


def test_every_command_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["--help"])
    assert leaving.value.code == 0
    out = capfd.readouterr().out
    assert all(f"    {command}" in out for command in ("prepare", "data", "train", "generate", "checkpoint"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which command?"),
        (["trian"], "did you mean train?"),
        (["xyz"], "known: prepare"),
        (["checkpoint"], "which command? see `germinal checkpoint --help`"),
        (["checkpoint", "lst", "runs/x"], "did you mean list?"),
        (["checkpoint", "list", "/nowhere/run"], "/nowhere/run: no such run folder"),
        (["data", "inspekt", "x"], "did you mean inspect?"),
        (["data", "inspect", "/nowhere/corpus"], "/nowhere/corpus is not a corpus"),
        (["data", "verify", "/nowhere/corpus"], "/nowhere/corpus is not a corpus"),
        (["generate", "/nowhere/run"], "/nowhere/run: no such run folder"),
        (["generate", "/nowhere/run", "--max-tokens", "0"], "'0' is not an integer of at least 1"),
        (["train"], "required: CONFIG"),
        (["train", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["train", "CONFIG", "--nprc", "2"], "did you mean --nproc?"),
        (
            ["train", "CONFIG", "--steps", "3"],
            "--steps is an option of --debug; keys of the config are key=value, without dashes: train.steps=",
        ),
        (["train", "CONFIG", "--lr", "3"], "keys of the config are key=value, without dashes; see `germinal"),
        (["train", "CONFIG", "--train.steps=3"], "'--train.steps=3'; keys of the config are key=value"),
        (["plot", "runs/x", "--log-y"], "unknown argument '--log-y'; see `germinal plot --help`"),
        (["train", "CONFIG", "--nproc", "0"], "'0' is not an integer of at least 1"),
        (["train", "CONFIG", "--steps", "3", "--debug", "--rows", "-1"], "--rows -1: must be 0 or more"),
        (["train", "CONFIG", "--overfit"], "--overfit is an option of --debug"),
        (["train", "CONFIG", "--debug", "--debug-rank", "1"], "--debug-rank 1: there are 1 ranks"),
        (["attach", "/nowhere"], "/nowhere: no rank waits there"),
        (["train", "CONFIG", "train.stpes=3"], "did you mean train.steps?"),
        (["train", "CONFIG", "--nproc", "2", "train.steps=x"], "train.steps='x'"),
        (
            ["train", "CONFIG", "--nproc", "3"],
            "3 data ranks · train.micro_batch=2 = 6: set train.global_batch to a multiple of 6",
        ),
        (["train", "CONFIG", "--nproc", "4", "parallel.tp=3"], "does not divide the world of 4 ranks"),
        (["train", "CONFIG", "parallel.tp=2"], "and this is 1 process: start with --nproc 2"),
        (["train", "CONFIG", "parallel.recompute=ful"], "did you mean full?"),
        (["train", "CONFIG", "data.packing=cutt"], "did you mean cut?"),
        (
            ["train", "CONFIG", "run_dir=/dev/null/x"],
            "run_dir=/dev/null/x: /dev/null: Not a directory: set run_dir",
        ),
        (["train", "CONFIG", "--nproc", "4", "model.heads=2", "parallel.tp=4"], "model.heads=2"),
        (["train", "CONFIG", "--nproc", "2", "model.layers=3", "parallel.pp=2"], "model.layers=3"),
        (["train", "CONFIG", "data.sources=[]"], "data.sources"),
        (["train", "CONFIG", "data.sources=[{path: /nowhere}]"], "data.sources[0].path='/nowhere'"),
        (["train", "CONFIG", "model.vocab=256"], "has 300 tokens: set model.vocab to at least 300"),
        (["prepare", "x"], "required: --out"),
        (["prepare", "x", "--out", "/tmp/x", "--formt", "text"], "did you mean --format?"),
        (["prepare", "x", "--out", "/tmp/x", "--workers", "many"], "'many'"),
        (["prepare", "x", "--out", "/tmp/x", "--max-document-bytes", "9" * 20], "64 bits"),
        (["data", "inspect", "x", "--sequence", "9" * 20], "64 bits"),
        (["data", "inspect", "x", "--seq-len", "9" * 20], "64 bits"),
        (["generate", "x", "--seed", "-" + "9" * 20], "64 bits"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], config: str, arguments: list[str], says: str
) -> None:
    code, message = failure(capfd, *[config if word == "CONFIG" else word for word in arguments])
    assert code == 2
    assert says in message


def test_a_wrong_config_never_imports_torch(config: str) -> None:
    code = (
        "import sys\n"
        "from launch import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", config, "model.vocab=256"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_overrides_may_stand_on_both_sides_of_an_option(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(keep_running, "keep_running", lambda job, cfg: jobs.append(job) or 0)
    assert cli.main(["train", config, "seed=1", "--nproc", "2", "seed=2", "train.steps=9"]) == 0
    assert jobs == [Job(config, ("seed=1", "seed=2", "train.steps=9"), 2)]


def test_every_option_says_what_it_is() -> None:
    def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub in action.choices.values():
                    yield from walk(sub)

    parsers = list(walk(cli.build_parser()))
    assert len(parsers) > 8
    silent = [
        f"{parser.prog} {action.option_strings}"
        for parser in parsers
        for action in parser._actions
        if action.option_strings and not action.help
    ]
    assert not silent
