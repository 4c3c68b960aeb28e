"""Records a run: every step goes through here to `metrics.jsonl`, the ledger, the list of quarantined
samples, the trackers and the live line.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from parallel.engine import Engine, Micro, StepResult
from parallel.layout.layout import Layout
from parallel.world.addresses import network
from parallel.world.runtime import Runtime
from trainer.config.plain import plain
from trainer.config.run_config import RunConfig
from trainer.config.sections import TrackConfig
from trainer.evaluation.best import recorded
from trainer.folder.fence import Fence, Guard, unfenced
from trainer.metrics.progress import Progress
from trainer.metrics.samples import Samples
from trainer.metrics.speed import Speed
from trainer.metrics.trackers import Trackers
from trainer.ranks import Ranks
from trainer.record.events import ENDED_EARLY, EventLog
from trainer.record.shared_log import ALONE, LEDGER_STEPS, Machine, SharedLog
from trainer.record.sinks import JsonlLog, Known, nothing_known, records_of
from trainer.state import TrainState
from trainer.steps import Quarantined

if TYPE_CHECKING:
    from trainer.evaluation.bias import Bias
    from trainer.evaluation.evaluate import HeldoutResult


class Meter:
    """The record of a run, as one rank writes it. Rank 0 writes the metrics; the first rank of each data rank
    writes the ledger and the list of quarantined samples.

    cfg: the run's config.
    speed: measures steps, rows and memory.
    events: the run's event log.
    writes_metrics: this is rank 0.
    data_rank: the data rank whose ledger this rank writes; None where another rank does.
    about: fields of the start event: ranks, layout, device, threads, epoch.
    quarantined: the damage that masks sequences, by sequence number. Reading runs ahead of training: an entry
        is taken out, and written with the step that its sequence belongs to.
    guard: raises where a later start of the run writes the record.
    machine: that this rank is on.

    `logs` are what a checkpoint must find on disk (see `sinks` for the rule). A step's time runs from the end
    of the step before: waiting for data and a save's stall count, an evaluation does not.
    """

    def __init__(
        self,
        cfg: RunConfig,
        *,
        speed: Speed,
        events: EventLog,
        writes_metrics: bool,
        data_rank: int | None,
        about: Mapping[str, Any],
        quarantined: Quarantined,
        guard: Guard,
        machine: Machine = ALONE,
    ) -> None:
        self._cfg, self._about = cfg, about
        self._speed, self._events = speed, events
        self._writes, self._data_rank = writes_metrics, data_rank
        self._quarantined = quarantined
        self._known: set[tuple[str, str]] = set()  # damaged samples, (shard, sample), that were reported
        self._guard = guard
        self._metrics = JsonlLog(cfg.folder / "metrics.jsonl", guard)
        self._ledger = SharedLog(cfg.folder, "ledger", guard, machine=machine, steps=LEDGER_STEPS)
        self._quarantine = SharedLog(cfg.folder, "quarantine", guard, machine=machine)
        self._record = (self._metrics, self._ledger, self._quarantine)  # reads as if never interrupted
        # Not the run's own, which only rank 0 writes: damage is seen by the rank that reads it.
        self._damage = EventLog(cfg.folder / "events.jsonl", guard)
        self._progress = Progress(cfg.train.steps, shown=False)
        track = cfg.track if writes_metrics else TrackConfig()
        self._samples = Samples(
            cfg.folder,
            track.samples,
            track.sample_tokens,
            JsonlLog(cfg.folder / "samples.jsonl", guard),
            EventLog(cfg.folder / "events.jsonl", guard),
        )
        shown = replace(cfg, supervise=replace(cfg.supervise, notify=""))  # a webhook's URL may be a secret
        self._trackers = Trackers(
            track, name=cfg.name, run_dir=cfg.folder, config=plain(shown), events=events, guard=guard
        )

    @classmethod
    def open(
        cls,
        cfg: RunConfig,
        *,
        runtime: Runtime,
        ranks: Ranks,
        engine: Engine,
        layout: Layout,
        events: EventLog,
        quarantined: Quarantined,
        fence: Fence | None = None,
    ) -> "Meter":
        """Build the meter of this rank of the run that `cfg` describes. Collective."""
        unit, count = cfg.model.row_unit(cfg.row_length)
        speed = Speed(
            unit=unit,
            units_per_row=count,
            flops_per_row=cfg.flops_per_row,
            devices=runtime.world,
            device=runtime.device,
        )
        return cls(
            cfg,
            speed=speed,
            events=events,
            writes_metrics=runtime.is_writer,
            data_rank=engine.data_rank if engine.is_first_of_data_rank else None,
            about={
                "ranks": runtime.world,
                "layout": str(layout),
                "device": runtime.device.type,
                "threads": runtime.threads,
                **({"epoch": fence.epoch} if fence else {}),
            },
            quarantined=quarantined,
            guard=fence.check if fence else unfenced,
            machine=ranks.by_rank_zero(network(), Machine.of_each),
        )

    @property
    def logs(self) -> tuple[JsonlLog, ...]:
        """The logs that this rank writes, or may write, besides the run's events."""
        return (*self._record, self._damage)

    def resume(
        self, state: TrainState, *, known: Callable[[JsonlLog], Known] = lambda log: nothing_known
    ) -> bool:
        """Begin at `state`: drop the lines of later steps, which a killed run left behind, so that every step
        is there once. Return whether an evaluation after `state.step` is in the record, on the rank that
        writes it.

        `known`: how much of a log need not be read.
        """
        for log in self._record:  # or the file that the next lines replace would count as lost
            log.close()
        self._progress.close()
        if self._writes:
            for log in self._record:
                later, torn = log.cut_after(state.step, known(log))
                if later or torn:
                    found = ((later, "of later steps"), (torn, "cut short"))
                    what = " and ".join(
                        f"{count} line{'s' * (count > 1)} {which}" for count, which in found if count
                    )
                    reason = f"{log.name}: dropped {what}"
                    self._events.event("rewind", state.step, reason)
            reason = "went on" if state.step else "new run"
            self._events.event("start", state.step, reason, **self._about)
        self._progress = Progress(self._cfg.train.steps, done=state.step, shown=self._writes)
        self._speed.go()
        return self._writes and any("eval" in record for record in records_of(self._metrics.path, state.step))

    def step(
        self, state: TrainState, result: StepResult, *, lr: float, micro_batches: Sequence[Micro]
    ) -> None:
        """Record the step that `state` now counts."""
        self._speed.step(self._cfg.train.global_batch)
        if self._cfg.data.ledger or self._quarantined:
            numbers = [number for batch in micro_batches for number in batch.sequences if number >= 0]
            masked = [entry for number in numbers for entry in self._quarantined.pop(number, ())]
            if self._data_rank is not None:
                if self._cfg.data.ledger:
                    line = {"step": state.step, "dp_rank": self._data_rank, "sequences": numbers}
                    if self._cfg.parallel.layouts:
                        line["layout"] = self._about["layout"]
                    self._ledger.write(line)
                self._list_quarantined(state.step, masked)
        if not self._writes:
            return
        self._samples.poll(self._progress.print_line)
        if result.skipped:
            why = f"gradients overflowed at loss scale {result.loss_scale:g}"
            if not result.count:
                why = "no target of the global batch is counted, all are masked or padding"
            reason = f"{why}: nothing was updated"
            self._events.event("skip", state.step, reason, loss_scale=result.loss_scale)
        if state.step % self._cfg.train.log_every and state.step != self._cfg.train.steps:
            return
        record: dict[str, Any] = {
            "step": state.step,
            "sequences": state.sequences,
            "tokens": state.tokens,
            "loss": result.loss_sum / result.count if result.count else math.nan,
            "grad_norm": result.grad_norm,
            "lr": lr,
            **self._speed.read(),
        }
        if result.sources:
            record["sources"] = self._by_source(result)
        if self._cfg.train.precision == "fp16":
            record["loss_scale"] = result.loss_scale
        self._metrics.write(record)
        self._trackers.log(record, state.step)
        self._progress.step(state.step, record)

    def evaluation(
        self,
        state: TrainState,
        results: Mapping[str, "HeldoutResult"],
        bias: Mapping[str, "Bias"] = MappingProxyType({}),
    ) -> None:
        """Record an evaluation made after `state.step`: of each held-out set, and of each bias probe."""
        if self._writes:
            record: dict[str, Any] = {"step": state.step}
            record["eval"] = {name: result.record() for name, result in results.items()}
            if bias:
                record["bias"] = {name: found.record() for name, found in bias.items()}
            self._metrics.write(record)
            self._trackers.log(record, state.step)
            for name, result in results.items():
                self._progress.print_line(f"step {state.step}: held-out {name}: {result}")
            for name, found in bias.items():
                self._progress.print_line(f"step {state.step}: {name}: {found}")
        self._speed.go()

    def ended_early(self, state: TrainState, why: str) -> None:
        """Write that the run ends before `train.steps`, and why."""
        if self._writes:
            self._events.event(ENDED_EARLY, state.step, why)

    def evaluations(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (step, figures) of the evaluations in the record, on the rank that writes it."""
        return recorded(self._metrics.path) if self._writes else []

    def stopped(self, state: TrainState) -> None:
        """Write that the run was asked to stop and is saved: a record that ends otherwise is one of a run
        that was killed. End the live line, or it would be drawn again under the last line.
        """
        self._progress.close()
        if self._writes:
            reason = f"saved at step {state.step} after a request to stop" if state.step else "asked to stop"
            self._events.event("stop", state.step, reason)

    def finish(self, state: TrainState, kept: str) -> None:
        """Close the record of a finished run: draw its curves, print how it went, `kept` if it is not empty,
        and where its files are.
        """
        if not self._writes:
            return
        self._progress.close()
        self._samples.finish(self._progress.print_line)
        try:
            from trainer.metrics.closing import close_run

            lines = close_run(self._cfg.folder, self._cfg.name)
        except Exception as error:  # the run itself is done and saved, whatever a library for pictures does
            self._events.event("picture", state.step, f"no picture was drawn: {error}")
            return
        for line in [*lines[:-1], *filter(None, [kept]), *lines[-1:]]:
            self._progress.print_line(line)

    def close(self) -> None:
        """End the live line, finish the trackers, close the logs."""
        self._progress.close()
        self._trackers.finish()
        for log in self.logs:
            log.close()

    def _by_source(self, result: StepResult) -> dict[str, dict[str, float | None]]:
        """Source → mean loss of its targets in this step, and its share of all; loss None where it had no
        target.
        """
        names = [source.name or source.path for source in self._cfg.data.sources]
        return {
            name: {
                "loss": loss_sum / count if count else None,
                "share": round(count / max(1, result.count), 6),
            }
            for name, (loss_sum, count) in zip(names, result.sources)
        }

    def _list_quarantined(self, step: int, masked: Sequence[dict[str, Any]]) -> None:
        for entry in masked:
            self._quarantine.write({"step": step, **entry})
            sample = (entry["shard"], entry["sample"])
            if sample not in self._known:
                self._known.add(sample)
                ranks = entry.get("ranks", ())
                reason = (
                    f"shard {entry['shard']}: sample {entry['sample']!r}, byte {entry['offset']}: damaged"
                    f"{' as rank ' + ', '.join(map(str, ranks)) + ' reads it' if ranks else ''}; "
                    f"its sequences are masked, from {entry['sequence']} on: see {self._quarantine.path.name}"
                )
                self._damage.event("quarantine", step, reason, **entry)
