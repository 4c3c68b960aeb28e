"""What is checked of a job before any rank starts, without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launch.job import Job
from parallel.world.launcher import SLURM, identity, launcher_variables

if TYPE_CHECKING:
    from trainer.config.run_config import RunConfig


def check_alone(environ: Mapping[str, str]) -> None:
    """ValueError where another launcher has started this process as one of several: each would start a run of
    its own, in one folder.
    """
    tasks = identity(environ)[1] if launcher_variables(environ) else 1
    if tasks > 1:
        by_srun = launcher_variables(environ) == SLURM
        launcher, start = ("srun", "srun germinal rank") if by_srun else ("a launcher", "… germinal rank")
        raise ValueError(
            f"{launcher} has started {tasks} of this command, and each would start a run of its own: let it "
            f"start the ranks themselves, with `{start} CONFIG [key=value…]`"
        )


def check_job(job: Job) -> "RunConfig":
    """Return the job's config once its keys, its layout and its corpora on disk are known to fit together.

    Raises ValueError where the config is wrong, RuntimeError where a corpus is damaged; one line each.
    """
    from trainer.config import checks, reading

    cfg = reading.load(job.config, job.overrides)
    checks.layout(cfg, job.nproc)
    _check_vocabularies(cfg)
    return cfg


def _check_vocabularies(cfg: "RunConfig") -> None:
    """Raise ValueError where the model's vocabulary does not hold a corpus's tokens and the objective's, or
    its head a corpus's classes.
    """
    from data.corpus.manifest import read_manifest
    from trainer.folder.run_folder import away
    from trainer.objectives.context import ObjectiveContext

    paths = {f"data.sources[{index}].path": source.path for index, source in enumerate(cfg.data.sources)}
    paths |= {f"data.heldout[{index}].path": corpus.path for index, corpus in enumerate(cfg.data.heldout)}
    for key, path in paths.items():
        if "://" in path:  # remote: the run itself looks
            continue
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            if reason := away(cfg.folder, path):
                raise RuntimeError(f"{key}={reason}") from None
            raise ValueError(f"{key}={path!r}: {error}") from None
        tokenizer = manifest.tokenizer
        context = ObjectiveContext(
            seed=cfg.seed,
            seq_len=cfg.data.seq_len,
            vocab=tokenizer.vocab,
            eos=tokenizer.eos,
            tokenizer=(Path(path) / tokenizer.file).read_bytes,
            model=cfg.model,
            classes=len(manifest.classes),
        )
        if wrong := context.too_small(cfg.model.vocab, cfg.objective) or context.wrong_classes(cfg.objective):
            raise ValueError(f"{key}={path!r}: {wrong}")
