"""The config of a trained run as its evaluation has it: another layout, nothing else. Imports no torch.

A Hugging Face folder stands for a run that has trained its model: see `of_folder`.
"""

from collections.abc import Sequence
from pathlib import Path

from trainer.config import checks, of_folder, reading
from trainer.config.run_config import RunConfig

# The run's layout gives way to that of the evaluation: law 1 says that the figures are the same.
_ANY_LAYOUT = (
    *("train.ranks=[]", "train.fp8=none", "parallel.layouts=[]", "parallel.engine=torch"),
    *("parallel.dp_replicate=1", "parallel.dp_shard=-1", "parallel.cp=1", "parallel.tp=1", "parallel.pp=1"),
    *("parallel.async_tp=false", "parallel.schedule=1f1b", "parallel.stages_per_rank=0", "parallel.cut=even"),
    *("parallel.recompute=none", "parallel.compile=false"),
    *("parallel.offload_optimizer=none", "parallel.offload_parameters=none"),
)


def load(run: Path, overrides: Sequence[str], world: int) -> RunConfig:
    """Return the config of the run, or of the Hugging Face folder, `run` for an evaluation on `world` ranks.

    The ranks are data ranks, unless `overrides` say otherwise (`parallel.tp=2`). They may also set what an
    evaluation reads, such as train.micro_batch, train.precision and train.eval_documents.

    Raises ValueError, one line, where an override is wrong or the layout cannot be.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    asked = given.get("train.micro_batch", "")
    read = of_folder.load if of_folder.is_folder(run) else reading.load
    rows = int(asked) if asked.isdecimal() else read(run).train.micro_batch
    # No step is taken: a number of rows that any layout of so many ranks divides.
    batch = f"train.global_batch={2 * max(1, rows) * world}"
    cfg = read(run, (*_ANY_LAYOUT, batch, *overrides))
    checks.layout(cfg, world)
    return cfg


def load_to_decode(run: Path, overrides: Sequence[str], world: int) -> RunConfig:
    """Return the config of the run in the folder `run` for `world` ranks that write texts: they share the
    model by tensor parallelism, unless `overrides` say otherwise.

    Raises ValueError, one line, where an override is wrong, or the layout is not one of tensor parallelism.
    """
    asked = any(override.startswith("parallel.") for override in overrides)
    cfg = load(run, overrides if asked else (*overrides, f"parallel.tp={world}"), world)
    layout = checks.layout(cfg, world)
    if layout.tp != world:
        raise ValueError(
            f"parallel.tp={layout.tp} on {world} ranks: a text is written by tensor parallelism alone: set "
            f"parallel.tp={world}"
        )
    return cfg


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (runs, overrides) of the words of a command line, in which they may be mixed: a `key=value` of
    the config is an override. ValueError where there is no run.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    runs = [word for word in words if word not in overrides]
    if not runs:
        raise ValueError("which run? give a run folder such as runs/quickstart, or a Hugging Face folder")
    return runs, overrides


def named(words: Sequence[str], option: str) -> dict[str, str]:
    """Return name → path of an option's NAME=PATH; a path alone is called as the file is.

    ValueError where two have one name, or nothing is at a path.
    """
    found: dict[str, str] = {}
    for word in words:
        name, given, path = word.partition("=")
        if not given or "://" in name or Path(word).exists():  # the "=" is in the path
            name, path = "", word
        name = name or Path(path).stem
        if name in found:
            raise ValueError(f"{option}: two are called {name!r}: give each its own name, as NAME=PATH")
        if "://" not in path and not Path(path).exists():
            raise ValueError(f"{option} {word}: {path} is not there")
        found[name] = path
    return found
