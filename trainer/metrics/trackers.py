"""Experiment trackers through `accelerate.tracking`: wandb, TensorBoard and the others it knows.

They run in a thread of their own, started with the run: importing and starting wandb takes a second or two,
logging to it a good part of a millisecond, and training should not wait for either. A tracker that fails is
an
event, never a crash: the run's own record is `metrics.jsonl`.
"""

import logging
import netrc
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from trainer.config.sections import TrackConfig
from trainer.folder.fence import Guard, unfenced
from trainer.folder.run_folder import identity
from trainer.record.events import EventLog

FINISH_SECONDS = 30.0
STATED = ("entity", "group", "tags", "notes")  # keys of `track` that wandb.init has by these names


class Trackers:
    """Sends metrics to the tools named in `track.tools`, on one rank.

    track: the config's section. "jsonl" among the tools is not a tracker and is passed over.
    name: of the run.
    run_dir: the run folder; tools that write files write them there.
    config: the resolved config, for tools that show it.
    events: gets the tools that failed.
    guard: raises where a later start of the run writes in the folder.

    wandb works offline unless a key is configured (WANDB_API_KEY, `wandb login`) or WANDB_MODE sets another
    mode. It reads its other variables itself: what the config leaves empty is not passed to it.
    """

    def __init__(
        self,
        track: TrackConfig,
        *,
        name: str,
        run_dir: Path,
        config: Mapping[str, Any],
        events: EventLog,
        guard: Guard = unfenced,
    ) -> None:
        self._track = track
        self._tools = [tool for tool in track.tools if tool != "jsonl"]
        self._name = name
        self._run_dir = run_dir
        self._config = config
        self._events = events
        self._guard = guard
        self._queue: queue.SimpleQueue[tuple[dict[str, Any], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._tools:
            self._thread.start()

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Hand over a record of metrics.jsonl: `train/loss`, `eval/NAME/loss`, with `step` as the axis."""
        if self._tools:
            self._queue.put((scalars(record), step))

    def finish(self) -> None:
        """Wait until all is handed over, but not for ever: a tracker may be waiting for a network."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(FINISH_SECONDS)
            if self._thread.is_alive():
                reason = f"not finished within {FINISH_SECONDS:g} s: {', '.join(self._tools)}"
                self._events.event("tracker", 0, reason)

    def _work(self) -> None:
        started = {tool: self._attempt(tool, 0, partial(self._start, tool)) for tool in self._tools}
        running = {tool: tracker for tool, tracker in started.items() if tracker}
        while (item := self._queue.get()) is not None:
            values, step = item
            for tool, tracker in list(running.items()):
                if not self._attempt(tool, step, partial(tracker.log, values, step=step)):
                    del running[tool]
        for tool, tracker in running.items():
            self._attempt(tool, 0, tracker.finish)

    def _attempt(self, tool: str, step: int, action: Callable[[], Any]) -> Any:
        """The action's result (True for none); False where it failed, which is an event."""
        try:
            result = action()
        except BaseException as error:  # some tools end the process by SystemExit where a key is wrong
            reason = f"{tool}: {' '.join(str(error).split()) or type(error).__name__}: switched off"
            self._events.event("tracker", step, reason)
            return False
        return True if result is None else result

    def _start(self, tool: str) -> Any:
        from accelerate import tracking

        # Accelerate's own logger makes Accelerate's process state, and whoever makes that first decides what
        # kind of engine the process may have later; a plain logger does not.
        tracking.logger = logging.getLogger("accelerate.tracking")
        kind = tracking.LOGGER_TYPE_TO_CLASS[tool]
        if tool == "wandb":
            tracker = kind(self._wandb_project(), **self._wandb_options())
        elif tool == "tensorboard":  # its name is a folder, and it has no projects
            tracker = kind(self._name, str(self._run_dir / tool))
        elif kind.requires_logging_directory:
            tracker = kind(self._track.project or self._name, str(self._run_dir / tool))
        else:
            tracker = kind(self._track.project or self._name)
        tracker.main_process_only = False
        tracker.start()
        if tool == "tensorboard":
            # As text: its table of hyperparameters would be a folder more at every start.
            lines = yaml.safe_dump(dict(self._config), sort_keys=False).splitlines()
            tracker.writer.add_text("config", "\n".join(f"    {line}" for line in lines), global_step=0)
        return tracker

    def _wandb_project(self) -> str:
        """The config's, else what wandb found in WANDB_PROJECT or its settings file."""
        import wandb

        return self._track.project or wandb.setup().settings.project or "germinal"

    def _wandb_options(self) -> dict[str, Any]:
        import wandb

        return {
            "id": identity(self._run_dir, self._guard),  # a resume goes on in the same wandb run
            "name": wandb.setup().settings.run_name or self._name,  # WANDB_NAME
            "dir": str(self._run_dir),
            "config": dict(self._config),
            "mode": wandb_mode(),
            "resume": None if wandb_mode() == "offline" else "allow",
            "settings": wandb.Settings(silent=True, console="off"),
            **{key: value for key in STATED if (value := getattr(self._track, key))},
        }


def wandb_mode() -> str:
    """What the user set (WANDB_MODE), else "online" where wandb has a key, else "offline"."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode != "online" or settings.api_key or settings.identity_token_file:
        return str(settings.mode)
    try:
        known = netrc.netrc().authenticators(urlsplit(settings.base_url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


def scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of metrics.jsonl under the names of trackers: `train/…`, `eval/…` and `bias/…`."""
    training = {key: value for key, value in record.items() if key not in ("step", "eval", "bias")}
    return flat({"train": training, "eval": record.get("eval", {}), "bias": record.get("bias", {})})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by "/"."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}/")
        else:
            out[f"{prefix}{key}"] = value
    return out
