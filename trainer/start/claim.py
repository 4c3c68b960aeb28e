"""Takes the run folder for one start of the run, and describes the run in it."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import yaml

from common.files import write_atomically
from common.lock import FolderLock
from data.corpus.manifest import TEMPLATE, TEMPLATE_FILE
from data.stream.stream import Stream
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.folder.fence import Fence
from trainer.folder.run_folder import EVENTS
from trainer.optim.schedule import decay_begins
from trainer.process.disk import REFUSED, explained, explaining
from trainer.record.events import EventLog
from trainer.record.sinks import drop_torn_tail
from trainer.state import Identity, TrainState

LOGS = ("metrics.jsonl", "ledger.jsonl", "quarantine.jsonl", "samples.jsonl", EVENTS)


def take_folder(cfg: RunConfig, stream: Stream, stack: ExitStack, fence: Fence) -> str:
    """Make the run folder and hold it for this start, once the corpus's tokenizer is known to be whole;
    return the mark of its epoch.
    """
    corpus = stream.sources[0].corpus
    corpus.storage.tokenizer()  # only to see that it can be had
    if not (cfg.folder / "checkpoints").exists():  # else the position is not known yet
        check_length(cfg, stream, TrainState())
    with explaining(cfg.folder):
        try:
            cfg.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in REFUSED:  # full, or away for the moment
                raise
            raise ValueError(explained(error, cfg.folder)) from error
        lock = FolderLock.take(cfg.folder)
        stack.callback(lock.release)
        mark = fence.take(lock.check)
        # Of a process that was killed while it wrote a file anew.
        for draft in (*cfg.folder.glob(".tmp-*"), *(cfg.folder / run_folder.CONFIGS).glob(".tmp-*")):
            draft.unlink(missing_ok=True)  # a rank that was left behind may have removed its own
        for name in LOGS:
            if (cfg.folder / name).is_dir():
                raise RuntimeError(
                    f"{cfg.folder / name} is a folder, and a log of the run goes there: move it away"
                )
        torn = [name for name in (EVENTS, "samples.jsonl") if drop_torn_tail(cfg.folder / name)]
    for name in torn:
        _record(cfg, fence, "clean", f"{name}: dropped its last line, which was cut short")
    if lock.lease is not None:
        _record(cfg, fence, "lock", "; ".join(filter(None, (lock.why, lock.lease.told))))
    return mark


def _record(cfg: RunConfig, fence: Fence, kind: str, reason: str, step: int = 0) -> None:
    with contextlib.closing(EventLog(cfg.folder / EVENTS, fence.check)) as events:
        events.event(kind, step, reason)


def check_length(cfg: RunConfig, stream: Stream, state: TrainState) -> None:
    """ValueError where the steps from `state` on need more sequences than the sources' max_epochs give."""
    if stream.length is None:
        return
    most = state.step + max(0, stream.length - state.sequences) // cfg.train.global_batch
    if cfg.train.steps > most:
        raise ValueError(
            f"train.steps={cfg.train.steps}: data.sources[].max_epochs gives {stream.length} sequences, "
            f"which end with step {most} of train.global_batch={cfg.train.global_batch}: lower train.steps "
            "or raise max_epochs"
        )


def describe(cfg: RunConfig, stream: Stream, step: int, fence: Fence) -> None:
    """Write the resolved config and the tokenizer into the run folder, so that it is complete in itself.

    The config there has no `run_dir`: it stands for the folder that it is in, which may be moved.
    """
    corpus = stream.sources[0].corpus
    tokenizer = corpus.storage.tokenizer()
    with explaining(cfg.folder):
        config = reading.dump(replace(cfg, run_dir="")).encode()
        own = cfg.folder / run_folder.CONFIG
        if own.is_file() and (changed := changes(own.read_bytes(), config)):
            _record(cfg, fence, "config", f"not as it was: {', '.join(changed)}", step)
        run_folder.write_config(cfg.folder, config, step, guard=fence.check)
        write_atomically(cfg.folder / "tokenizer.json", tokenizer, guard=fence.check)
        if template := corpus.manifest.prepare.get(TEMPLATE):
            write_atomically(cfg.folder / TEMPLATE_FILE, template.encode(), guard=fence.check)


def changes(before: bytes, now: bytes) -> list[str]:
    """List `train.log_every 1 → 5` for each key that differs between two resolved configs."""
    after = _dotted(yaml.safe_load(now))
    try:
        then = _dotted(yaml.safe_load(before))
    except yaml.YAMLError:  # it was edited since
        return [f"{run_folder.CONFIG}, which was not YAML any more"]
    return Identity(settings=after).changes({"settings": then})


def _dotted(config: Any) -> dict[str, Any]:
    sections = config.items() if isinstance(config, dict) else ()
    found = {key: values if isinstance(values, dict) else {"": values} for key, values in sections}
    return {
        f"{key}.{name}".rstrip("."): value for key, names in found.items() for name, value in names.items()
    }


def decays(cfg: RunConfig) -> set[int]:
    """The steps after which the rate begins to fall, by this config and the run's earlier ones."""
    found = {decay_begins(cfg.optim, cfg.train.steps)}
    for earlier in reading.earlier(cfg.folder):
        found.add(decay_begins(earlier.optim, earlier.train.steps))
    return found - {0}
