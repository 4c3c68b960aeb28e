"""2 is never the answer to what passes by itself; 75 is that of a run that another process holds for now."""

import errno
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.checks import check_job
from launch.job import Job
from trainer.__main__ import main
from trainer.config import reading
from trainer.folder.fence import Fence
from trainer.ranks import Ranks
from trainer.start import claim
from whole_runs import environment, make_corpus, meeting_place, write_config


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 2),
        (errno.ENOTDIR, 2),
        (errno.EACCES, 2),
        (errno.EIO, 1),
        (errno.ESTALE, 1),
        (errno.ETIMEDOUT, 1),
        (errno.EMFILE, 1),
    ],
)
def test_a_config_that_cannot_be_read(
    number: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: x")
    monkeypatch.setattr(Path, "open", failing(number))
    assert main([str(config)]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"error: config {config}: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, ValueError),  # 2
        (errno.EROFS, ValueError),
        (errno.EIO, OSError),  # 1
        (errno.ESTALE, OSError),
        (errno.ENOSPC, OSError),
    ],
)
def test_a_run_folder_that_cannot_be_made(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = reading.load(write_config(tmp_path, make_corpus(tmp_path)))
    from trainer.start.opening import open_stream

    stream = open_stream(cfg, Ranks())
    monkeypatch.setattr(Path, "mkdir", failing(number))
    with ExitStack() as stack, pytest.raises(kind) as raised:
        claim.take_folder(cfg, stream, stack, Fence(cfg.folder))
    assert isinstance(raised.value, ValueError) == (kind is ValueError)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EWOULDBLOCK, BlockingIOError), (errno.EIO, OSError), (errno.ESTALE, OSError)]
)
def test_a_run_folder_that_is_held_or_cannot_be_locked(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BlockingIOError is 75, whoever holds the folder, a machine that died and whose lease runs included."""
    from common import lock

    monkeypatch.setattr(lock.fcntl, "flock", failing(number))
    with pytest.raises(kind) as raised:
        lock.FolderLock.take(tmp_path, patience_seconds=0.1)
    assert not isinstance(raised.value, ValueError)


def test_a_corpus_that_the_run_has_read_is_away_not_wrong(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    config = write_config(tmp_path, corpus)
    job = Job(str(config))
    cfg = check_job(job)
    corpus.rename(tmp_path / "unmounted")
    with pytest.raises(ValueError, match="is not a corpus"):  # a new run: a typing mistake, most likely
        check_job(job)
    cfg.folder.mkdir()
    (cfg.folder / "config.yaml").write_text(reading.dump(cfg))
    (cfg.folder / "events.jsonl").touch()
    with pytest.raises(RuntimeError, match="is its disk mounted on this machine"):
        check_job(job)
    with pytest.raises(ValueError, match="is not a corpus"):
        check_job(Job(str(config), ("data.sources[0].path=elsewhere",)))


@pytest.mark.parametrize("broken", ["all", "rank 1's"])
def test_a_wrong_config_is_one_line_of_several_ranks(broken: str, tmp_path: Path) -> None:
    """The test ends rank 1 as a launcher does, once rank 0 has left; one that is wrong alone speaks."""
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"nonsense": 1}))
    env = environment() | meeting_place() | {"WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(config)],
            env=env | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ((0, 1) if broken == "all" else (1,))
    ]
    if broken == "all":
        assert ranks[0].wait(timeout=30) == 2
        time.sleep(1.0)
        ranks[1].terminate()
    said = [rank.communicate(timeout=30)[1] for rank in ranks]
    assert all(rank.returncode == 2 for rank in ranks)
    assert "".join(said).count("error: ") == 1, said
