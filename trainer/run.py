"""Where the parts of a run are put together: `assemble` builds them from the config; `Run` starts the loop,
and starts it again from an older checkpoint where that is needed.

This is the composition root: the only file that may import from every room.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from common.retry import repeats
from data.stream.loader import Loader
from data.stream.stream import Stream
from parallel.engine import Engine
from parallel.world.runtime import Runtime
from trainer.checkpoint.manager import PATIENCE_SECONDS, Checkpointer
from trainer.config.run_config import RunConfig
from trainer.decide import Decision, Then
from trainer.evaluation.best import Best, open_best
from trainer.evaluation.evaluate import Evaluator
from trainer.evaluation.opening import open_evaluator
from trainer.first_weights.fill import begin, fill_frozen
from trainer.first_weights.open import open_base
from trainer.folder.fence import Fence
from trainer.loop import allows_a_step, train
from trainer.metrics.meter import Meter
from trainer.process import threads
from trainer.ranks import Ranks, on_every_rank
from trainer.record.events import EventLog
from trainer.start.agreement import agree, place
from trainer.start.claim import check_length, decays, describe, take_folder
from trainer.start.engine import make_engine
from trainer.start.left_out import tell_left_out
from trainer.start.opening import identity, objective_context, open_alike
from trainer.start.seconds import record_start
from trainer.state import TrainState
from trainer.steps import Steps
from trainer.watch.phases import END, START, Phases


@dataclass
class Run:
    """A run that is ready to go: what `trainer.loop.train` takes, wired together, at the position `state`.

    cfg: the run's config.
    engine: holds the model and the optimiser as they are at `state`.
    loader: reads this data rank's part of the stream, ahead of the steps.
    steps: the micro-batches of each step; ranks that read the same sequences mask the same damaged ones.
    state: how far the run has come.
    checkpointer, meter, evaluator: save, record and evaluate.
    best: the best evaluation so far.
    stopping: whether this rank was asked to stop.
    ranks: this rank among all.
    phases: what the rank is doing, for its watchdog.
    """

    cfg: RunConfig
    engine: Engine
    loader: Loader
    steps: Steps
    state: TrainState
    checkpointer: Checkpointer
    meter: Meter
    evaluator: Evaluator
    best: Best
    stopping: Callable[[], bool]
    ranks: Ranks
    phases: Phases

    def __call__(self, *, draws: bool = True) -> bool:
        """Train to the last step and close the record; return False where the run was asked to stop.

        draws: draw the run's curves at the end, which takes as long as a very short run itself.

        If the first update after a resume has a gradient that is not finite, go back to the newest older
        checkpoint from which an update can be made, and train on. RuntimeError where there is none.
        """
        while (end := self._train()).then is Then.REWIND:
            if not self.rewind(end.why):
                raise on_every_rank(repeats(RuntimeError(end.why)))
        if end.then is not Then.DONE:
            self.meter.stopped(self.state)
            return False
        if draws:
            kept = self.best.kept_at(self.state.step) if self.cfg.finetune.keep_best else ""
            self.meter.finish(self.state, kept)
        return True

    def _train(self) -> Decision:
        try:
            return train(
                self.engine,
                self.steps,
                self.state,
                self.checkpointer,
                self.meter,
                self.cfg,
                evaluator=self.evaluator,
                stopping=self.stopping,
                best=self.best,
            )
        finally:
            self.phases.main.next(END, self.state.step)

    def begin(self) -> None:
        """Continue the record at `state`: drop the lines of later steps, and tell the evaluator whether the
        evaluation after this step is recorded already. Collective.
        """
        evaluated = self.ranks.tell(
            self.ranks.together(lambda: self.meter.resume(self.state, known=self.checkpointer.known))
        )
        self.evaluator.done = self.state.step if evaluated else 0
        if self.best.metric:
            self.best.recall(self.ranks.on_rank_zero(self.meter.evaluations))
            self.checkpointer.keep_best(self.best.step if self.cfg.finetune.keep_best else 0)

    def rewind(self, why: str) -> bool:
        """Move engine, record and stream to the newest older checkpoint from which a step can be made. Return
        whether there is one. Collective.

        why: the reason, for the event.
        """
        self.phases.main.next(START, self.state.step, "going back to an older checkpoint")
        found = self.checkpointer.go_back(self.engine, why, self._allows_a_step)
        if found is None:
            return False
        self.state.move_to(found)
        self.begin()
        self._seek(found)
        return True

    def _seek(self, state: TrainState) -> None:
        """Read on from `state`: drop what was read ahead."""
        self.loader.seek(state.sequences)
        self.steps.restart(state.step + 1)

    def _allows_a_step(self, state: TrainState) -> bool:
        self._seek(state)
        try:
            return allows_a_step(self.engine, self.steps, state, self.cfg)
        finally:
            self.loader.close()

    def left_at(self) -> str:
        """Return a line for the user of a run that was asked to stop: where it is saved, and what to do."""
        at = self.checkpointer.folder(self.state.step)
        return f"stopped: saved at step {self.state.step}: {at}; the same command goes on"


def assemble(
    cfg: RunConfig,
    runtime: Runtime,
    stack: ExitStack,
    *,
    fence: Fence | None = None,
    doing: Callable[[str], None] = lambda what: None,
    phases: Phases | None = None,
) -> Run:
    """Build every part of the run, and load its newest checkpoint, if it has one. Collective: every rank
    calls it with the same config.

    cfg: the run's config.
    runtime: this rank, which has joined the others.
    stack: closes what was opened.
    fence: this start's right to write into the run folder; taken here. None: make one.
    doing: called with a description of what comes next, where that takes long.
    phases: what the rank is doing from its first step on, for its watchdog.

    Raises:
        ValueError: the config asks for what cannot be (corpus, layout, another run's checkpoints).
        BlockingIOError: another process holds the run folder.
        RuntimeError, OSError: something is damaged, or the run folder cannot be written.
    """
    phases = phases or Phases()
    doing("opening the corpus")
    ranks = Ranks(runtime.rank, runtime.world)
    given = cfg
    cfg, layout, stream = open_alike(cfg, ranks)
    threads.settle(cfg, runtime, ranks)
    fence = fence or Fence(cfg.folder)
    fence.join(ranks.on_rank_zero(lambda: take_folder(cfg, stream, stack, fence)))
    agree(ranks, place(cfg.folder, fence, ranks))
    doing("building the model")
    engine = make_engine(cfg, runtime, layout, objective_context(cfg, stream))
    stack.callback(engine.close)

    events = EventLog(cfg.folder / "events.jsonl" if runtime.is_writer else None, fence.check)
    stack.callback(events.close)
    meter = Meter.open(
        cfg,
        runtime=runtime,
        ranks=ranks,
        engine=engine,
        layout=layout,
        events=events,
        quarantined=stream.quarantined,
        fence=fence,
    )
    stack.callback(meter.close)
    base = open_base(cfg, ranks)
    checkpointer = Checkpointer(
        cfg.folder,
        every=cfg.checkpoint.every,
        keep=cfg.checkpoint.keep,
        keep_every=cfg.checkpoint.keep_every,
        decays=decays(cfg) if runtime.is_writer else (),
        asynchronous=cfg.checkpoint.asynchronous,
        identity=lambda position: identity(cfg, stream, position, base.to_json() if base else None),
        events=events,
        logs=meter.logs,
        layout=str(layout),
        ranks=ranks,
        patience_seconds=max(PATIENCE_SECONDS, cfg.supervise.first_seconds),
        guard=fence.check,
        phases=phases,
        gone=lambda: runtime.first_departure(0.0),
    )
    stack.callback(checkpointer.close)
    doing("looking for a checkpoint to go on from, and reading it")
    resumed = checkpointer.resume(engine)
    doing("reading the first weights")
    if resumed is None:
        begin(cfg, engine, stream, ranks, events, base.source if base else None)
    elif base is not None:
        fill_frozen(base, engine.frozen(), cfg, ranks)
        engine.load(engine.scalars())
    state = resumed or TrainState()
    ranks.together(lambda: check_length(cfg, stream, state))
    context = objective_context(cfg, stream)
    evaluator = open_evaluator(
        cfg, engine, layout, stream, context, step=state.step, events=events, ranks=ranks, phases=phases
    )
    if resumed is None:
        tell_left_out(cfg, stream, evaluator.sets, ranks, events)
    first = state.step

    def stopping() -> bool:
        if state.step > first and not runtime.is_under_way:
            runtime.mark_under_way()
            record_start(events, state.step, phases)
        return runtime.stopping

    loader, steps = open_steps(cfg, engine, stream, state, ranks, phases)
    stack.callback(loader.close)
    run = Run(
        cfg=cfg,
        engine=engine,
        loader=loader,
        steps=steps,
        state=state,
        checkpointer=checkpointer,
        meter=meter,
        evaluator=evaluator,
        best=ranks.together(lambda: open_best(cfg, context)),
        stopping=stopping,
        ranks=ranks,
        phases=phases,
    )
    run.begin()
    # Last, for two reasons. A config that does not fit the checkpoint must not replace the run's config.yaml.
    # And a folder with a config.yaml counts as a run folder only if it also holds an events.jsonl or a
    # checkpoint, so `begin` has written an event first.
    ranks.on_rank_zero(lambda: describe(given, stream, state.step, fence))
    return run


def open_steps(
    cfg: RunConfig,
    engine: Engine,
    stream: Stream,
    state: TrainState,
    ranks: Ranks,
    phases: Phases | None = None,
) -> tuple[Loader, Steps]:
    """Begin to read this data rank's part of the stream from `state` on; return the loader, and the steps
    that it gives (see `trainer.steps`).
    """
    loader = Loader(
        stream,
        rank=engine.data_rank,
        ranks=engine.data_ranks,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
        start=state.sequences,
        prefetch=cfg.data.prefetch,
    )
    steps = Steps(
        loader,
        quarantined=stream.quarantined,
        ranks=ranks,
        masks_alike=cfg.data.on_corrupt == "quarantine" and engine.data_ranks < ranks.world,
        eos=stream.eos,
        phases=phases,
        first=state.step + 1,
    )
    return loader, steps
