"""The command line from outside: quick help, one line for each mistake, and the right process started."""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.corpus.manifest import Manifest, TokenizerEntry, write_manifest
from launch import cli
from launch.checks import check_job
from launch.job import ONE_PROCESS, Job, ProcessCommand, python
from launch.local import run
from launch.local.rank_commands import KEEP_MEMORY, rank_commands

GERMINAL = str(Path(sys.executable).with_name("germinal"))
ASCII = {
    **os.environ,
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}

CONFIG = """
name: tiny
model: {{layers: 2, hidden: 64, heads: 4, vocab: 512}}
data: {{sources: [{{path: {corpus}}}], seq_len: 64}}
train: {{steps: 4, global_batch: 8, micro_batch: 2}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config whose corpus, of no document, has a tokenizer of 300 tokens."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_manifest(corpus, Manifest(TokenizerEntry("tokenizer.json", "0" * 64, 300, 0), "uint16", 64, ()))
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(corpus=corpus))
    return str(file)


def failure(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that fails: one line on standard error and nothing else."""
    code = cli.main(arguments)
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return code, err


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
        (["generate", "/nowhere/run", "--max-tokens", "0"], "'0' is not a number of at least 1"),
        (["train"], "required: CONFIG"),
        (["train", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["train", "CONFIG", "--nprc", "2"], "did you mean --nproc?"),
        (
            ["train", "CONFIG", "--steps", "3"],
            "keys of the config are key=value, without dashes; see `germinal",
        ),
        (["train", "CONFIG", "--train.steps=3"], "'--train.steps=3'; keys of the config are key=value"),
        (["plot", "runs/x", "--log-y"], "unknown argument '--log-y'; see `germinal plot --help`"),
        (["train", "CONFIG", "--nproc", "0"], "'0' is not a number of at least 1"),
        (["train", "CONFIG", "--nproc", "2", "--debug"], "--debug is one process"),
        (["train", "CONFIG", "train.stpes=3"], "did you mean train.steps?"),
        (["train", "CONFIG", "--nproc", "2", "train.steps=x"], "train.steps='x'"),
        (["train", "CONFIG", "--nproc", "3"], "global_batch=8 is not divisible by 3 data ranks"),
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
        (["train", "CONFIG", "model.vocab=256"], "has 300 tokens; set model.vocab to 300 or more"),
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


def test_a_damaged_corpus_is_a_failure_not_a_mistake(
    capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path
) -> None:
    (tmp_path / "corpus/manifest.json").write_text("{")
    code, message = failure(capfd, "train", config)
    assert code == 1
    assert "is damaged" in message


def test_overrides_may_stand_on_both_sides_of_an_option(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(run, "run_job", lambda job: jobs.append(job) or 0)
    assert cli.main(["train", config, "seed=1", "--nproc", "2", "seed=2", "train.steps=9"]) == 0
    assert jobs == [Job(config, ("seed=1", "seed=2", "train.steps=9"), 2)]


def test_generate_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[ProcessCommand] = []
    monkeypatch.setattr(run, "become", started.append)
    (tmp_path / "checkpoints").mkdir()
    cli.main(["generate", str(tmp_path), "--prompt=-x y", "--top-p", "0.5"])
    options = ("--prompt=-x y", "--max-tokens=200", "--temperature=0.8", "--top-p=0.5", "--seed=0")
    assert started == [
        ProcessCommand(
            (
                sys.executable,
                "-P",
                "-m",
                "trainer.process.entry",
                "trainer.generate.command",
                str(tmp_path),
                *options,
            )
        )
    ]


def test_verify_records_in_one_process_and_compares_on_the_layout(
    monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(run, "run_as_children", lambda job: jobs.append(job) or 0)
    assert cli.main(["verify", config, "parallel.tp=2", "--nproc", "4", "--steps", "3", "--json"]) == 0
    assert [(job.module, job.nproc) for job in jobs] == [
        ("trainer.verify.command", 1),
        ("trainer.verify.command", 4),
    ]
    record, compare = (job.options for job in jobs)
    assert record == ("--steps=3", "--json", "record", compare[-1])
    assert compare[:3] == ("--steps=3", "--json", "compare")
    assert jobs[0].overrides[: 1 + len(ONE_PROCESS)] == ("parallel.tp=2", *ONE_PROCESS)
    assert "parallel.engine=torch" in jobs[0].overrides
    assert jobs[1].overrides == ("parallel.tp=2",)


def test_verify_stops_where_the_reference_fails(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    codes = [1]
    monkeypatch.setattr(run, "run_as_children", lambda job: codes.pop())
    assert cli.main(["verify", config, "--nproc", "2"]) == 1


def test_every_rank_is_told_who_it_is() -> None:
    job = Job("c.yaml", ("seed=1",), 4, threads=2)
    ranks = rank_commands(job, rendezvous="file:///tmp/x", environ={})
    assert [command.env["RANK"] for command in ranks] == ["0", "1", "2", "3"]
    assert all(
        command.argv == (sys.executable, "-P", "-m", "trainer", "c.yaml", "seed=1") for command in ranks
    )
    assert all(command.env["WORLD_SIZE"] == command.env["LOCAL_WORLD_SIZE"] == "4" for command in ranks)
    assert all(command.env["GERMINAL_INIT"] == "file:///tmp/x" for command in ranks)
    assert all(command.env["OMP_NUM_THREADS"] == "2" for command in ranks)


def test_threads_that_the_user_set_are_left_and_one_rank_gets_no_rendezvous() -> None:
    many = rank_commands(Job("c", (), 2, threads=4), rendezvous="file:///x", environ={"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS" not in many[0].env
    (single,) = rank_commands(Job("c"), rendezvous="", environ={"SLURM_NTASKS": "8"})
    who = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert single.env == who | KEEP_MEMORY


@pytest.mark.parametrize(("platform", "left_by_a_kill"), [("linux", 0), ("darwin", 1)])
def test_the_ranks_meeting_place_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, left_by_a_kill: int
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run._rendezvous_file() as place:
        # As a rank does: opened anew each time, in another process.
        write = f"open({place!r}, 'a').write('met')"
        subprocess.run([sys.executable, "-c", write], check=True, timeout=60)
        assert Path(place).read_text() == "met"
        assert len(list(tmp_path.iterdir())) == left_by_a_kill
    assert not Path(place).exists() and not list(tmp_path.iterdir())


def test_a_module_run_here_keeps_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["germinal"])
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(int(sys.argv[1]))")
    (tmp_path / "breaks.py").write_text("1 / 0")
    assert run.run_module("leaves", "75") == 75
    assert run.run_module("leaves", "0") == 0
    assert run.run_module("breaks") == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_checkpoints_of_a_run_without_any(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(["checkpoint", "list", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"run": str(tmp_path), "checkpoints": []}
    assert failure(capfd, "checkpoint", "verify", str(tmp_path)) == (
        1,
        f"error: {tmp_path} has no checkpoint\n",
    )


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


def test_what_is_no_run_folder(capfd: pytest.CaptureFixture[str], config: str, tmp_path: Path) -> None:
    assert failure(capfd, "checkpoint", "list", config) == (
        2,
        f"error: {config} is a file in no run folder: give a run folder such as runs/tiny\n",
    )
    code, err = failure(capfd, "checkpoint", "list", str(tmp_path / "corpus"))
    assert code == 2 and "is no run folder: it has no config.yaml" in err
    code, err = failure(capfd, "data", "inspect", str(tmp_path / "corpus"), "--sequence", "3")
    assert code == 2 and "a corpus alone has no order" in err


def test_verify_refuses_fp8_and_its_reference_offloads_nothing(
    capfd: pytest.CaptureFixture[str], config: str
) -> None:
    code, err = failure(capfd, "verify", config, "train.precision=bf16", "train.fp8=rowwise")
    assert code == 2 and "train.fp8=rowwise" in err and "train.fp8=none" in err
    code, err = failure(capfd, "train", config, "parallel.offload_optimizer=cpu")
    assert code == 2 and "parallel.offload_optimizer=cpu" in err and "deepspeed" in err
    offloading = ("parallel.engine=deepspeed", "parallel.offload_optimizer=cpu")
    check_job(Job(config, offloading).reference())


def test_another_clone_in_the_working_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('another clone')")
    done = subprocess.run(
        python("trainer", "--help"), cwd=tmp_path, env=ASCII, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m trainer CONFIG [key=value…]")
