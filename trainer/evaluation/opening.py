"""Opens all that a run's evaluations need."""

from __future__ import annotations

from data.stream.stream import Stream
from parallel.engine import Engine
from parallel.layout.layout import Layout
from trainer.config.run_config import RunConfig
from trainer.evaluation.answers import open_texts
from trainer.evaluation.evaluate import Evaluator
from trainer.evaluation.heldout import open_heldout
from trainer.evaluation.probes import open_probes
from trainer.objectives.context import ObjectiveContext
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.watch.phases import Phases


def open_evaluator(
    cfg: RunConfig,
    engine: Engine,
    layout: Layout,
    stream: Stream,
    context: ObjectiveContext,
    *,
    step: int,
    events: EventLog,
    ranks: Ranks,
    phases: Phases,
) -> Evaluator:
    """Return what evaluates the held-out sets of the config. Collective; raises as `open_heldout` and
    `open_probes` do.
    """
    probes = open_probes(cfg, engine, layout, stream, ranks)
    return Evaluator(
        open_heldout(cfg, engine, stream, step=step, events=events, ranks=ranks),
        every=cfg.train.eval_every,
        objective=cfg.objective,
        pp=layout.pp,
        probes=probes,
        texts=open_texts(cfg, context, engine, layout, ranks),
        ranks=ranks,
        phases=phases,
    )
