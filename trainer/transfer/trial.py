"""One fine-tuning of a comparison, by the trainer itself, in a process that does many."""

from __future__ import annotations

import io
import shutil
import time
from contextlib import ExitStack, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallel.world.runtime import Runtime
from trainer.checkpoint.folder import steps
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.config.transferring import RANDOM, RUNNING, Transfer
from trainer.evaluation.best import recorded
from trainer.folder.fence import Fence
from trainer.models.config import init_from
from trainer.run import assemble
from trainer.transfer import labels, plan
from trainer.transfer.plan import Trial
from trainer.transfer.records import Records

SCORED = "scored"  # what a fine-tuning calls the documents that it is scored on
# One process computes with one thread, and keeps nothing of a fine-tuning but its figures.
OF_EVERY_TRIAL = (
    *("train.threads=1", "train.eval_every=0", "checkpoint.every=0", "checkpoint.keep_every=0"),
    *("finetune.patience=0", "finetune.keep_best=false", "track.tools=[jsonl]", "supervise.notify=''"),
)


def random_weights(transfer: Transfer, seed: int) -> Path:
    """The run that has the random weights of a seed."""
    return transfer.cfg.folder / RANDOM / f"seed-{seed}"


def write_random_weights(transfer: Transfer, seed: int, runtime: Runtime) -> None:
    """Save the model of pre-training as it is drawn from a seed, before any step, unless that is done.

    Fine-tuning then begins from it as from any run, with every method.
    """
    folder = random_weights(transfer, seed)
    if steps(folder / "checkpoints"):
        return
    cfg = transfer.pretraining
    model: Any = cfg.model
    if init_from(model):
        model = replace(model, init_from="")
    train, track = replace(cfg.train, threads=1), replace(cfg.track, tools=["jsonl"], samples=[])
    drawn = replace(
        cfg, name=f"random-{seed}", run_dir=str(folder), seed=seed, model=model, train=train, track=track
    )
    with ExitStack() as stack, redirect_stderr(io.StringIO()):
        run = assemble(drawn, runtime, stack, fence=Fence(folder, transfer.guard))
        run.checkpointer.save(run.state, run.engine, reason="weights as they are drawn")
        run.checkpointer.wait()


def run_folder(trial: Trial, transfer: Transfer) -> Path:
    """The run folder of a fine-tuning, for as long as it is not done."""
    return transfer.cfg.folder / RUNNING / trial.key


def config_of(trial: Trial, transfer: Transfer) -> RunConfig:
    """Return the config of a fine-tuning, checked. ValueError, one line, where something does not fit."""
    cfg = transfer.cfg
    pretrained = trial.arm == plan.PRETRAINED
    begins = transfer.pretrained if pretrained else random_weights(transfer, trial.seed)
    documents = labels.folder_of(cfg, trial.labels, trial.seed)
    scored = labels.validation(cfg) if trial.on == plan.VALIDATION else cfg.heldout
    read = reading.load(
        transfer.finetune_file,
        (
            f"name={trial.key}",
            f"run_dir={run_folder(trial, transfer)}",
            f"seed={trial.seed}",
            f"model.init_from={begins}",
            f"data.sources=[{{path: '{documents}', name: labels}}]",
            f"data.heldout=[{{path: '{scored}', name: {SCORED}}}]",
            f"finetune.metric={cfg.metric}",
            f"finetune.method={trial.method}",
            f"optim.lr={trial.rate!r}",
            *OF_EVERY_TRIAL,
        ),
    )
    batch = min(read.train.global_batch, trial.labels)  # or a step would read a document twice
    micro_batch = next(rows for rows in range(min(read.train.micro_batch, batch), 0, -1) if batch % rows == 0)
    return replace(read, train=replace(read.train, global_batch=batch, micro_batch=micro_batch))


def check(trial: Trial, transfer: Transfer, runtime: Runtime) -> None:
    """See that a fine-tuning can begin, and leave nothing behind. Raises as `trainer.run.assemble`."""
    cfg = config_of(trial, transfer)
    cfg = replace(cfg, run_dir=str(transfer.cfg.folder / RUNNING / "check"))
    with ExitStack() as stack, redirect_stderr(io.StringIO()):
        assemble(cfg, runtime, stack, fence=Fence(cfg.folder, transfer.guard))
    transfer.guard()
    shutil.rmtree(cfg.folder)


def run_trial(trial: Trial, transfer: Transfer, runtime: Runtime) -> bool:
    """Fine-tune, record the figures, and remove the run folder. Return False where the run was asked to stop.

    A fine-tuning that was killed goes on in its run folder as any run does. One that goes on although a later
    start has taken the comparison's folder ends before its next write.

    Raises as `trainer.run.assemble` and `Run`.
    """
    began = time.process_time()
    cfg = config_of(trial, transfer)
    with ExitStack() as stack, redirect_stderr(io.StringIO()):
        run = assemble(cfg, runtime, stack, fence=Fence(cfg.folder, transfer.guard))
        if not run(draws=False):
            return False
    _, figures = recorded(cfg.folder / "metrics.jsonl")[-1]
    Records(transfer.cfg, transfer.guard).add(trial, figures[SCORED], time.process_time() - began)
    shutil.rmtree(cfg.folder)
    return True
