"""What `germinal checkpoint list` and `germinal checkpoint verify` print, as plain JSON. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from trainer.checkpoint import folder as folders
from trainer.checkpoint.manifest import MANIFEST, read_manifest


def list_checkpoints(run_dir: Path) -> dict[str, Any]:
    """The run's checkpoints, newest first, without reading their tensors; and what is there besides.

    `{run, checkpoints: [{step, path, sequences, tokens, bytes, files, tensors, ranks, saved_at}], others:
    [names]}`; a checkpoint whose manifest or state cannot be read has `error` instead. `others` are
    unfinished saves and damaged checkpoints that were set aside. ValueError where there is no run.
    """
    root = _root(run_dir)
    found = [_describe(folders.step_folder(root, step), step) for step in folders.steps(root)]
    names = {Path(entry["path"]).name for entry in found}
    others = (
        sorted(entry.name for entry in root.iterdir() if entry.name not in names) if root.is_dir() else []
    )
    return {"run": str(run_dir), "checkpoints": found, "others": others}


def verify_checkpoints(run_dir: Path) -> dict[str, Any]:
    """Every checkpoint of the run, newest first, every byte read.

    `{run, ok, checkpoints: [{step, path, ok, bytes | error}]}`; `ok` at the top is false where one is damaged
    or there is none. ValueError where there is no run.
    """
    root = _root(run_dir)
    out = []
    for step in folders.steps(root):
        at = folders.step_folder(root, step)
        result: dict[str, Any] = {"step": step, "path": str(at), "ok": True}
        try:
            result["bytes"] = sum(entry.bytes for entry in folders.verify(at).files.values())
        except RuntimeError as error:
            result |= {"ok": False, "error": str(error)}
        out.append(result)
    return {"run": str(run_dir), "ok": bool(out) and all(each["ok"] for each in out), "checkpoints": out}


def _root(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run folder")
    return run_dir / "checkpoints"


def _describe(at: Path, step: int) -> dict[str, Any]:
    described: dict[str, Any] = {"step": step, "path": str(at)}
    try:
        manifest = read_manifest(at)
        document = json.loads((at / folders.STATE).read_bytes())
        described |= {
            "sequences": manifest.sequences,
            "tokens": document["state"]["tokens"],
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
            "files": len(manifest.files),
            "tensors": len(manifest.tensors),
            "ranks": document["world"],
            "saved_at": (at / MANIFEST).stat().st_mtime,
        }
    except RuntimeError as error:
        described["error"] = str(error)
    except (OSError, ValueError, KeyError) as error:
        described["error"] = f"{at / folders.STATE}: cannot be read: {type(error).__name__}"
    return described
