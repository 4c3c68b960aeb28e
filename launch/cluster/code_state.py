"""The code of a submission: a copy that its jobs run, and the commit and the difference that it came from.

The copy holds the packages of the project, as `import` finds them at `germinal submit`: edits, upgrades and
other branches that come while a job waits do not reach it. What the project depends on is not copied.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("common", "data", "launch", "parallel", "trainer")
STATE, DIFF = "code.json", "code.diff"
MOST_BYTES = 64 << 20  # of the copy: the packages have some 2 MB
MOST_DIFF_BYTES = 4 << 20
GIT_SECONDS = 20.0
_RECORDED = (
    "germinal",
    "torch",
    "accelerate",
    "deepspeed",
    "numpy",
    "omegaconf",
    "safetensors",
    "webdataset",
)


def keep(folder: Path, copy: Path, *, like: Path | None = None) -> None:
    """Write the copy of the code to `copy`, and code.json and code.diff beside it in `folder`.

    like: the folder of another submission of the same command: the files of its copy are linked, not copied.

    Raises:
        RuntimeError: the packages are larger than they can be.
    """
    total, digest = 0, hashlib.sha256()
    for source, name in _files():
        total += source.stat().st_size
        if total > MOST_BYTES:
            raise RuntimeError(
                f"{source}: the packages hold more than {MOST_BYTES >> 20} MiB, so they are not copied: give "
                "code: installed in the cluster file, or remove what is no code"
            )
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (like and _linked(like / copy.name / name, target)):
            shutil.copyfile(source, target)
        digest.update(f"{name} {hashlib.sha256(target.read_bytes()).hexdigest()}\n".encode())
    state, diff = _git()
    if diff:
        (folder / DIFF).write_bytes(diff)
    state |= {"sha256": digest.hexdigest(), "bytes": total, "python": sys.version.split()[0]}
    state["versions"] = {name: version for name in _RECORDED if (version := _version(name))}
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")


def _files() -> Iterator[tuple[Path, str]]:
    """Yield (file, its path in the copy) of every file of the packages but bytecode, in order."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        for root in found.submodule_search_locations or () if found else ():
            for folder, names, files in os.walk(root):
                names[:] = sorted(name for name in names if name != "__pycache__")
                for name in sorted(files):
                    file = Path(folder) / name
                    if not name.startswith(".") and file.is_file():
                        yield file, str(Path(package) / file.relative_to(root))


def _linked(existing: Path, target: Path) -> bool:
    try:
        os.link(existing, target)
    except OSError:  # another file system, or one without links
        return False
    return True


def _git() -> tuple[dict[str, Any], bytes]:
    """Return {commit, branch, changed, untracked} of the checkout that the code lies in, and its difference
    from the commit; {commit: None} where there is no checkout or no git.
    """
    root = Path(__file__).resolve().parents[2]
    commit = _ask_git(root, "rev-parse", "HEAD")
    top = _ask_git(root, "rev-parse", "--show-toplevel")
    # A checkout of something else may lie above an environment with its site-packages.
    if commit is None or top is None or Path(os.fsdecode(top.strip())) != root:
        return {"commit": None}, b""
    names = PACKAGES  # only the packages are compared: other files are not run
    status = _ask_git(root, "status", "--porcelain", "--untracked-files=all", "--", *names) or b""
    lines = status.decode(errors="backslashreplace").splitlines()
    state = {
        "commit": commit.decode().strip(),
        "branch": (_ask_git(root, "branch", "--show-current") or b"")
        .decode(errors="backslashreplace")
        .strip(),
        "changed": [line[3:] for line in lines if not line.startswith("??")],
        "untracked": [line[3:] for line in lines if line.startswith("??")],
    }
    diff = _ask_git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", *names) or b""
    if len(diff) > MOST_DIFF_BYTES:
        state["diff"] = f"of {len(diff)} bytes, cut at {MOST_DIFF_BYTES}: the copy has all of it"
    return state, diff[:MOST_DIFF_BYTES]


def _ask_git(root: Path, *words: str) -> bytes | None:
    # A checkout of another owner is only read here: git's refusal to run its hooks there does not matter.
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=", "-c", f"safe.directory={root}", *words]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
