"""`germinal checkpoint`: list the checkpoints of a run, and verify every byte of them."""

import argparse
import time
from pathlib import Path
from typing import Any

from launch import options, tables
from trainer.folder.run_folder import find


def add_command(add: options.AddCommand) -> None:
    parser = add("checkpoint", "list or verify the checkpoints of a run")
    add = options.command_adder(parser)

    sub = add("list", "step, size and age of every checkpoint")
    options.add_run(sub)
    options.add_json(sub)
    sub.set_defaults(run=checkpoint_list)

    sub = add("verify", "read every byte of every checkpoint; exit code 1 if one is wrong")
    options.add_run(sub)
    sub.add_argument("--step", type=options.count, metavar="N", help="only the checkpoint of this step")
    options.add_json(sub)
    sub.set_defaults(run=checkpoint_verify)


def checkpoint_list(args: argparse.Namespace) -> int:
    """List every committed checkpoint, newest first; reads manifests only."""
    from trainer.checkpoint.folder import manifest_of, step_folder
    from trainer.checkpoint.manifest import MANIFEST

    entries = []
    for step in _steps(args.folder):
        at = step_folder(_root(args.folder), step)
        entry: dict[str, Any] = {"step": step, "path": str(at)}
        try:
            manifest = manifest_of(at)
            entry |= {
                "sequences": manifest.sequences,
                "tensors": len(manifest.tensors),
                "files": len(manifest.files),
                "bytes": sum(file.bytes for file in manifest.files.values()),
                "saved": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((at / MANIFEST).stat().st_mtime)),
            }
        except RuntimeError as error:
            entry["error"] = str(error)
        entries.append(entry)
    if args.json:
        tables.document({"run": args.folder, "checkpoints": entries})
        return 0
    columns = ("step", "sequences", "tensors", "files", "size", "saved")
    lines = [[*(entry.get(c) for c in columns[:4]), _size(entry), _note(entry)] for entry in entries]
    tables.rows(f"{args.folder}: {len(entries)} checkpoints", columns, lines)
    return 0


def checkpoint_verify(args: argparse.Namespace) -> int:
    """Read every byte of every checkpoint, or of the one at `--step`; return 1 if one is not as written."""
    from trainer.checkpoint.folder import step_folder, verify

    steps = _steps(args.folder)
    if args.step is not None and args.step not in steps:
        raise ValueError(f"--step {args.step}: {args.folder} has checkpoints at {steps}")
    if not steps:
        raise RuntimeError(f"{args.folder} has no checkpoint")
    verdicts = {}
    for step in steps if args.step is None else [args.step]:
        try:
            verify(step_folder(_root(args.folder), step))
            verdicts[step] = ""
        except RuntimeError as error:
            verdicts[step] = str(error)
    if args.json:
        results = [{"step": step, "sound": not why, "error": why} for step, why in verdicts.items()]
        tables.document({"run": args.folder, "sound": not any(verdicts.values()), "checkpoints": results})
    else:
        lines = [(step, why or "sound: every byte is as it was written") for step, why in verdicts.items()]
        tables.rows(f"{args.folder}: {len(verdicts)} checkpoints read", ("step", "verdict"), lines)
    return int(any(verdicts.values()))


def _root(path: str) -> Path:
    return find(path) / "checkpoints"


def _steps(path: str) -> list[int]:
    from trainer.checkpoint.folder import steps

    return steps(_root(path))


def _size(entry: dict[str, Any]) -> str:
    return tables.size(entry["bytes"]) if "bytes" in entry else "-"


def _note(entry: dict[str, Any]) -> str:
    return entry.get("saved") or f"damaged: {entry['error']}"
