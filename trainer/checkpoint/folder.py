"""A checkpoint as a folder: the manifest, the commit and the proof that every byte is what was written. No
torch here.

```
checkpoints/step-000000100/
  MANIFEST.json            tensors, cuts, the hashes of the next two files, its own hash
  FILES.txt                names, sizes and hashes of the ranks' files
  rank-00000.safetensors   stored chunks (and rank-00000-1.safetensors … where a rank has much to write)
  state.json               TrainState, the engine's scalars, the run's identity
```

Everything is written in `.tmp-step-…`, and one rename makes it a checkpoint: a folder without that prefix is
whole.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from common.files import fsync_folder, write_durably
from common.retry import attempts
from trainer.checkpoint.manifest import MANIFEST, Manifest, encode, read_manifest
from trainer.checkpoint.merge import Part, merge
from trainer.checkpoint.pieces.files import DamagedError, FileEntry, Listed
from trainer.folder.fence import Guard, unfenced

STATE = "state.json"
TMP = ".tmp-"
DAMAGED, DIVERGED = "damaged", "diverged"  # it does not verify; it does, but no step can be made from it
READ_BYTES = 4 << 20
READERS = 4
RENAMES, RENAME_SECONDS = 4, 0.5  # attempts at a commit's rename, and the first pause between them

# Errors of a file system that may pass: a server that restarts, a disk that somebody makes room on.
PASSING = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)

_STEP = re.compile(r"step-(\d{9}|[1-9]\d{9,})")  # as `step_folder` names them


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return root / f"step-{step:09d}"


def steps(root: Path) -> list[int]:
    """Return the steps of the committed checkpoints under `root`, highest first: the newest is the highest
    step, whatever the clocks of the files are.
    """
    if not root.is_dir():
        return []
    found = (_STEP.fullmatch(entry.name) for entry in os.scandir(root) if entry.is_dir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def goes_on(folder: Path) -> str:
    """Return what the same command would do after an end, for a line: where the run in `folder` is saved."""
    return _goes_on(folder) or "nothing is saved: the same command begins anew"


def before_first_step(folder: Path) -> str:
    """Return what a line says behind "before the first step", where a start ended so early."""
    saved = _goes_on(folder)
    return f" of this start: {saved}" if saved else ": nothing was under way"


def _goes_on(folder: Path) -> str:
    root = folder / "checkpoints"
    try:
        saved = next(iter(steps(root)), 0)
    except OSError:
        saved = 0
    return f"the same command goes on from step {saved}: {step_folder(root, saved)}" if saved else ""


def check_names(root: Path) -> None:
    """RuntimeError, one line, where a file has the name of a checkpoint."""
    for entry in os.scandir(root):
        if _STEP.fullmatch(entry.name) and not entry.is_dir():
            raise RuntimeError(f"{entry.path} is a file, and a checkpoint is a folder: move it away")


def commit(
    tmp: Path, final: Path, parts: Sequence[Part], *, step: int, sequences: int, guard: Guard = unfenced
) -> None:
    """Make the folder `tmp`, whose files are all on disk, the checkpoint `final`.

    RuntimeError where `final` exists (a step is never overwritten), the parts do not tile the tensors, or
    `guard` finds that a later start of the run writes here.
    """
    files, tensors = merge(parts)
    written = encode(Manifest(Listed(files), tensors, step, sequences))
    for name, data in written.items():
        write_durably(tmp / name, data)
    fsync_folder(tmp)
    if final.exists():
        raise RuntimeError(f"{final} exists already and is never overwritten: does another run write here?")
    guard()
    for attempt in attempts(RENAMES, RENAME_SECONDS):
        try:
            _rename(tmp, final, written[MANIFEST])
            fsync_folder(final.parent)
        except OSError as error:
            if error.errno not in PASSING or attempt == RENAMES - 1:
                raise
        else:
            return


def _rename(tmp: Path, final: Path, manifest: bytes) -> None:
    """A network file system may rename and report a failure, such as a stale handle. And where the answer was
    lost with the server, the client asks again, at the first attempt too, and hears that `tmp` is not there.
    """
    try:
        os.rename(tmp, final)
    except FileNotFoundError:
        if (final / MANIFEST).read_bytes() != manifest:
            raise


def hash_file(path: Path) -> str:
    """xxh3_128 of the file's bytes, in hexadecimal."""
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            hasher.update(buffer[:read])
    return hasher.hexdigest()


def check_file(folder: Path, name: str, entry: FileEntry) -> None:
    """DamagedError, one line, unless the file holds exactly the bytes that were written."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise DamagedError(f"{path}: {size} bytes, {entry.bytes} were written: cut short or replaced")
        if hash_file(path) != entry.xxh3_128:
            raise DamagedError(f"{path}: damaged: its bytes do not match the hash in {MANIFEST}")
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from error


def manifest_of(folder: Path) -> Manifest:
    """The manifest of the checkpoint `folder`; DamagedError, one line, where it is damaged or of another step
    than the folder is named after.
    """
    manifest = read_manifest(folder)
    named = _STEP.fullmatch(folder.name)
    if named and int(named[1]) != manifest.step:
        raise DamagedError(
            f"{folder}: holds step {manifest.step}, by its manifest: copied or renamed: its name should be "
            f"{step_folder(folder.parent, manifest.step).name}"
        )
    return manifest


def verify(folder: Path, *, share: tuple[int, int] = (0, 1)) -> Manifest:
    """Prove every byte, and that the step is the one in the folder's name; return the manifest. RuntimeError,
    one line, with the first file that differs from what was written.

    `share` = (rank, ranks) checks that rank's part of the files, so that ranks can divide a large checkpoint.
    """
    manifest = manifest_of(folder)
    mine = manifest.files.share_of(*share)
    with ThreadPoolExecutor(READERS) as pool:  # xxhash and read(2) let go of the interpreter lock
        for _ in pool.map(lambda name: check_file(folder, name, manifest.files[name]), mine):
            pass
    return manifest


def delete(folder: Path) -> None:
    """Remove a checkpoint. The rename comes first: killed in between, no half of a checkpoint is left under
    its name. Where someone put a link in its place, the link is removed and its target stays.
    """
    doomed = folder.with_name(f"{TMP}delete-{folder.name}")
    os.rename(folder, doomed)
    fsync_folder(folder.parent)
    _remove(doomed)


def _remove(path: Path) -> None:
    """A file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def aside(folder: Path, why: str = DAMAGED) -> Path:
    """Return the path that `set_aside` gives to a checkpoint."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.{why}-{number}")).exists():
        number += 1
    return path


def set_aside(folder: Path, why: str = DAMAGED) -> None:
    """Rename a checkpoint that is `why`, so that its step can be saved anew while the evidence stays."""
    os.rename(folder, aside(folder, why))
    fsync_folder(folder.parent)


def has_diverged_before(folder: Path) -> bool:
    """Whether a checkpoint of the same step was set aside as DIVERGED."""
    return any(folder.parent.glob(f"{folder.name}.{DIVERGED}-*"))


def clean(root: Path) -> list[str]:
    """Remove what dead attempts left behind; returns the names. Only for the one rank that owns the folder at
    start.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.name.startswith(TMP))
    for name in names:
        # A rank that was left behind may be writing there: after the rename it finds the folder no more.
        doomed = root / f"{TMP}delete-{secrets.token_hex(8)}"
        try:
            os.rename(root / name, doomed)
        except FileNotFoundError:  # of another process, which has removed its own
            continue
        _remove(doomed)
    return names
