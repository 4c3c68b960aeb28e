"""What is checked of a job before any rank starts, without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from launch.job import Job
from parallel.world.launcher import SLURM, identity, launcher_variables

if TYPE_CHECKING:
    from data.corpus.manifest import Manifest
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
    _check_corpora(cfg)
    _check_first_weights(cfg)
    return cfg


def _check_corpora(cfg: "RunConfig") -> None:
    """Raise ValueError where a corpus does not go with the model and the objective: the vocabulary does not
    hold its tokens, the head its classes, or it has no text, or no classes.
    """
    from trainer.objectives.context import ObjectiveContext

    sources = _manifests(cfg, "sources", [source.path for source in cfg.data.sources])
    heldout = _manifests(cfg, "heldout", [corpus.path for corpus in cfg.data.heldout])
    # Rows of a source without classes are not counted, as long as another source has some.
    classes = max((len(manifest.classes) for _, manifest in sources.values()), default=0)
    for key, (path, manifest) in (sources | heldout).items():
        tokenizer = manifest.tokenizer
        context = ObjectiveContext(
            seed=cfg.seed,
            seq_len=cfg.data.seq_len,
            vocab=tokenizer.vocab,
            eos=tokenizer.eos,
            tokenizer=(Path(path) / tokenizer.file).read_bytes,
            model=cfg.model,
            classes=len(manifest.classes) or (classes if key in sources else 0),
            tokens=manifest.tokens,
        )
        if wrong := context.wrong_corpora(cfg.model.vocab, cfg.objective):
            raise ValueError(f"{key}={path!r}: {wrong}")


def _manifests(cfg: "RunConfig", kind: str, paths: list[str]) -> dict[str, "tuple[str, Manifest]"]:
    """Return key → (path, manifest) of the corpora of `data.KIND`; remote ones the run itself looks at."""
    from data.corpus.manifest import read_manifest
    from trainer.folder.run_folder import away

    found = {}
    for index, path in enumerate(paths):
        key = f"data.{kind}[{index}].path"
        if "://" in path:
            continue
        try:
            found[key] = path, read_manifest(path)
        except ValueError as error:
            if reason := away(cfg.folder, path):
                raise RuntimeError(f"{key}={reason}") from None
            raise ValueError(f"{key}={path!r}: {error}") from None
    return found


def _check_first_weights(cfg: "RunConfig") -> None:
    """Raise ValueError or RuntimeError where what the run begins from is not whole: a Hugging Face folder
    with a file missing or damaged, or a tensor of another shape than config.json describes; a run without a
    checkpoint of that step. A run that has saved a checkpoint itself needs neither.
    """
    from trainer.checkpoint.folder import steps
    from trainer.config import first_keys
    from trainer.huggingface import choose, folder
    from trainer.huggingface.place import place
    from trainer.models.config import init_from

    if not (given := init_from(cfg.model)) or steps(cfg.folder / "checkpoints"):
        return
    begins = first_keys.origin(given)
    if begins.is_run:
        there = steps(begins.folder / "checkpoints")
        if not there or begins.step not in (None, *there):
            raise ValueError(
                f"model.init_from={given}: {begins.folder} has no such checkpoint; those there: {there[::-1]}"
            )
    else:
        family, model = choose.of_folder(begins.folder)
        place(family, model, folder.read_tensors(begins.folder), begins.folder)
