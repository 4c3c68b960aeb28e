"""Which run a path on the command line means, and the configs in its folder. No torch here.

A run folder holds `config.yaml` and, beside it, a file that only a run writes: `events.jsonl` or a committed
checkpoint. A folder that only holds a config.yaml is not a run folder.
"""

import difflib
import os
import re
import secrets
from pathlib import Path

from common.files import write_atomically
from trainer.folder.fence import Guard, unfenced

CONFIG = "config.yaml"  # the run's present resolved config
CONFIGS = "configs"  # folder of its earlier ones
EVENTS = "events.jsonl"
ID = ".id"


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run folder, wherever it was moved or copied to."""
    if not (folder / CONFIG).is_file():
        return False
    return (folder / EVENTS).is_file() or any(folder.glob("checkpoints/step-*/MANIFEST.json"))


def config_file(path: str | Path) -> Path:
    """Return the file that a CONFIG on the command line means: itself, or the config.yaml of a run folder.

    ValueError, one line, for a folder that is not a run's, and for a path that is not there.
    """
    path = Path(path)
    if path.is_dir():
        if is_run(path):
            return path / CONFIG
        raise ValueError(_no_run(path))
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path}: no such config file or run folder{_nearest(path)}")
    return path


def home(config: Path) -> Path | None:
    """Return the run folder whose config.yaml, or one of whose `configs/`, is `config`; None for another
    file.
    """
    for file in (config, config.resolve()):  # a link to a run's config means that run
        folder = None
        if file.name == CONFIG:
            folder = file.parent
        elif file.parent.name == CONFIGS and re.fullmatch(r"step-\d+\.yaml", file.name):
            folder = file.parent.parent
        if folder and is_run(folder):
            return folder
    return None


def away(folder: Path, path: str) -> str:
    """Return what to say of a corpus that is not there, although the run in `folder` has read it: then not
    the config is wrong. "" where the corpus is there, or the run does not know it.
    """
    if os.path.exists(path) or not is_run(folder) or path not in (folder / CONFIG).read_text():
        return ""
    return (
        f"{path}: no such folder, but the run in {folder} has read it: is its disk mounted on this machine?"
    )


def find(path: str | Path) -> Path:
    """Return the folder of the run that a RUN on the command line means: a folder, or the config in it.

    ValueError, one line, with the nearest name where there is no such folder. A folder without config.yaml
    but with checkpoints is still a run folder.
    """
    path = Path(path)
    if path.is_file():
        if folder := home(path):
            return folder
        raise ValueError(f"{path} is a file in no run folder: give a run folder such as runs/{path.stem}")
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder{_nearest(path)}")
    if not is_run(path) and not (path / "checkpoints").is_dir():
        raise ValueError(_no_run(path))
    return path


def identity(folder: Path, guard: Guard = unfenced) -> str:
    """Return an id of the run for tools that keep it elsewhere (wandb): unchanged when the folder is moved, a
    new one in a copy.

    A folder that is not at its former path was moved; if at that path there is still another folder with the
    same id, it is a copy.
    """
    here = str(folder.resolve())
    found, before = _identity(folder)
    if found and before == here:
        return found
    if not found or (_identity(Path(before))[0] == found and not folder.samefile(before)):
        found = secrets.token_hex(8)
    write_atomically(folder / ID, os.fsencode(f"{found} {here}\n"), guard=guard)
    return found


def _identity(folder: Path) -> tuple[str, str]:
    """Return the id in a run folder, and the folder's path when it was written; empty without an id."""
    try:
        found, _, path = os.fsdecode((folder / ID).read_bytes()).removesuffix("\n").partition(" ")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return "", ""
    return found, path


def _no_run(folder: Path) -> str:
    if (folder / CONFIG).is_file():
        return (
            f"{folder} is no run folder: beside config.yaml it has neither events.jsonl nor a checkpoint; "
            f"for a new run give {folder / CONFIG}"
        )
    above = [place for place in folder.parents if is_run(place)]
    if above:  # its checkpoints/, or one of them
        return f"{folder} is no run folder, but lies in one: give {above[0]}"
    runs = sorted(entry for entry in folder.iterdir() if is_run(entry))
    such = f"one of the {len(runs)} in it, such as {runs[0]}" if runs else "one such as runs/quickstart"
    return f"{folder} is no run folder: it has no config.yaml; give {such}, or a config"


def _nearest(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def write_config(folder: Path, config: bytes, step: int, guard: Guard = unfenced) -> None:
    """Write `config` as the config of the run in `folder` from `step` on. Earlier configs stay in `configs/`,
    each under the step from which the run had it.
    """
    own, past = folder / CONFIG, folder / CONFIGS
    before = own.read_bytes() if own.is_file() else b""
    if before and not past.exists():  # of a run that began before there was this folder
        past.mkdir()
        write_atomically(past / f"step-{0:09d}.yaml", before, guard=guard)
    if config != before:
        past.mkdir(exist_ok=True)
        write_atomically(_place(past, step, config), config, guard=guard)
    write_atomically(own, config, guard=guard)


def _place(past: Path, step: int, config: bytes) -> Path:
    """Return a path in `configs/` for a config from `step` on, which leaves another one of the same step."""
    path, number = past / f"step-{step:09d}.yaml", 1
    while path.exists() and path.read_bytes() != config:
        number += 1
        path = past / f"step-{step:09d}-{number}.yaml"
    return path
