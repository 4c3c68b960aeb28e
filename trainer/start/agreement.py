"""Before the first step: do all ranks run the same thing?

Ranks may be started with different overrides, from different installations, or read a corpus from a disk of
their own. Then they train on nonsense to the end, or wait for ever in a collective that the others never
call. So everything that shapes the result is compared before the mesh is made, whose groups already depend on
it.

Each rank sends one digest to all. Only where digests differ are the values sent: some KB of rank 0 and of the
first rank that differs.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from common.files import look_again
from data.config import DataConfig
from data.corpus.corpus import open_storage
from data.stream.stream import Stream
from trainer.config.plain import leaves, plain
from trainer.config.run_config import OF_A_NODE, RunConfig
from trainer.folder.fence import EPOCH, Fence
from trainer.ranks import Ranks, on_every_rank

# The packages that a rank runs. `launch` only starts it.
CODE = ("trainer", "parallel", "data", "common")
SHOWN_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class Facts:
    """Values that have to be equal on all ranks: key → plain JSON. `remedy`: what to do where they differ."""

    values: dict[str, Any]
    remedy: str


def agree(ranks: Ranks, *facts: Facts) -> None:
    """Return if all ranks have the same facts. Collective.

    Raises:
        ValueError: on every rank, one line with the first rank that differs from rank 0, the first such key
            and both values.
    """
    values = {key: value for some in facts for key, value in some.values.items()}
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    differs = ranks.first(values if digest != ranks.tell(digest) else None)
    if differs is not None:
        rank, theirs = differs
        raise on_every_rank(ValueError(_difference(facts, ranks.tell(values), theirs, rank)))


def _difference(facts: tuple[Facts, ...], mine: dict[str, Any], theirs: dict[str, Any], rank: int) -> str:
    """`mine`: rank 0's values; `theirs`: those of `rank`."""
    absent = object()
    keys = [key for key in mine | theirs if mine.get(key, absent) != theirs.get(key, absent)]
    key, more = keys[0], f" ({len(keys) - 1} more differ)" if len(keys) > 1 else ""
    found, expected = (_shown(values[key]) if key in values else "not there" for values in (theirs, mine))
    remedy = next((some.remedy for some in facts if key in some.values), facts[0].remedy)
    return (
        f"rank {rank} does not run what rank 0 runs: {key} is {found}, on rank 0 {expected}{more}: {remedy}"
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings(cfg: RunConfig) -> Facts:
    """Every key of the config, except those that may differ between nodes."""
    values = {key: value for key, value in leaves(plain(cfg)) if not OF_A_NODE.fullmatch(key)}
    return Facts(values, "start every rank with the same config and overrides")


def program(cfg: RunConfig) -> Facts:
    """Versions of what computes, and a hash of each of the project's own files."""
    files = {f"the file {name}": digest[:SHOWN_DIGITS] for name, digest in _source_files().items()}
    return Facts(_versions(cfg) | files, "install the same versions on every node")


def software(cfg: RunConfig) -> dict[str, str]:
    """What a checkpoint keeps of `program`: the versions, and one hash over all files."""
    code = hashlib.sha256(json.dumps(_source_files()).encode()).hexdigest()
    return {"code": code[:SHOWN_DIGITS], **_versions(cfg)}


def _versions(cfg: RunConfig) -> dict[str, str]:
    names = ["deepspeed", "accelerate"] if cfg.parallel.engine == "deepspeed" else []
    names += ["torchao"] if cfg.train.fp8 != "none" else []
    found = {"torch": str(torch.__version__)}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the engine reports it
            found[name] = importlib.metadata.version(name)
    return found


@cache
def _source_files() -> dict[str, str]:
    """Name, such as trainer/run.py, → SHA-256 of each source file; read once, as it was at the start."""
    found = {}
    for package in CODE:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root.parent).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def corpora(cfg: DataConfig, stream: Stream) -> Facts:
    """Hashes of what the stream and the held-out sets are made of, wherever their folders are.

    ValueError where a held-out set is missing, RuntimeError where a manifest or tokenizer is damaged.
    """
    storages = [(f"data.sources[{i}]", source.corpus.storage) for i, source in enumerate(stream.sources)]
    for _, storage in storages:
        storage.tokenizer()  # raises where the file does not match the manifest
    storages += [
        (f"data.heldout[{i}]", open_storage(heldout.path, cfg.cache_dir, cfg.cache_bytes, tell=False))
        for i, heldout in enumerate(cfg.heldout)
    ]
    values = {}
    for key, storage in storages:
        manifest = storage.manifest()
        values[f"{key}: the tokenizer's SHA-256"] = manifest.tokenizer.sha256[:SHOWN_DIGITS]
        values[f"{key}: the corpus's fingerprint"] = manifest.fingerprint[:SHOWN_DIGITS]
    values["the stream's fingerprint"] = stream.fingerprint[:SHOWN_DIGITS]
    return Facts(values, "give every node the same copy")


def place(folder: Path, fence: Fence, ranks: Ranks) -> Facts:
    """The run folder: equal for all ranks that find rank 0's mark in it, by whatever path. Collective.

    `fence`: joined on every rank, and so holds the mark.
    """
    here = f"{folder.resolve()} on {socket.gethostname()}"
    rank_0s = ranks.tell(here)
    shared = fence.held() or (look_again(folder / EPOCH) and fence.held())
    return Facts({"run_dir": rank_0s if shared else here}, "set run_dir to one folder that all nodes share")
