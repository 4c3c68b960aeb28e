"""Texts that a run writes while it trains: what its checkpoints make of given prompts, in `samples.jsonl`.

A process of its own, `trainer.generate.training_samples`, reads a committed checkpoint and continues the
prompts on a CPU: so a sample does not depend on the layout, and changes nothing in the run. The whole model
has to fit into that process.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.checkpoint.folder import steps
from trainer.record.events import EventLog
from trainer.record.sinks import JsonlLog

PrintLine = Callable[[str], None]

PROCESS = "trainer.generate.training_samples"
LAST_SECONDS = 300.0  # how long the end of a run waits for a sample; until then it holds its machine


class Samples:
    """Samples of one run, by the one rank that writes its metrics.

    run: the run folder.
    prompts: texts to continue; none: no samples.
    tokens: by how many tokens each is continued at most.
    log: gets {step, prompt, text}.
    events: gets the samples that failed.

    While one checkpoint is sampled, later ones are passed over, but for the last.
    """

    def __init__(
        self, run: Path, prompts: Sequence[str], tokens: int, log: JsonlLog, events: EventLog
    ) -> None:
        self._run, self._prompts, self._tokens = run, list(prompts), tokens
        self._log, self._events = log, events
        self._sampled = self._newest() if prompts else 0
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[str] | None = None

    def poll(self, print_line: PrintLine) -> None:
        """Start sampling the newest checkpoint, where there is a new one and none is being sampled."""
        if not self._prompts or (self._thread is not None and self._thread.is_alive()):
            return
        if (step := self._newest()) > self._sampled:
            self._sampled = step
            # A daemon: a rank that dies of something else does not wait for a text.
            self._thread = threading.Thread(target=self._sample, args=(step, print_line), daemon=True)
            self._thread.start()

    def finish(self, print_line: PrintLine) -> None:
        """Sample the last checkpoint, and wait for it, LAST_SECONDS at most."""
        deadline = time.monotonic() + LAST_SECONDS
        for _ in range(2):  # the one that is being sampled, and the last
            self.poll(print_line)
            if self._thread is not None:
                self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread is not None and self._thread.is_alive():
            self._events.event("sample", self._sampled, f"no sample was made within {LAST_SECONDS:g} s")
            if self._child is not None:
                self._child.kill()
            self._thread.join()
        self._log.close()
        self._events.close()

    def _newest(self) -> int:
        return next(iter(steps(self._run / "checkpoints")), 0)

    def _sample(self, step: int, print_line: PrintLine) -> None:
        arguments = [str(self._run), str(step), str(self._tokens), *self._prompts]
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainer.process.entry", PROCESS, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            written, errors = self._child.communicate()
            if code := self._child.returncode:
                last = errors.strip().splitlines() or [f"exit code {code}"]
                raise RuntimeError(last[-1].removeprefix("error: "))
            for line in written.splitlines():
                record = json.loads(line)
                self._log.write(record)
                print_line(f"step {step}: {record['prompt']}{record['text']}".replace("\n", "\\n"))
        except (OSError, ValueError, RuntimeError) as error:
            self._events.event("sample", step, f"no sample was made: {error}")
