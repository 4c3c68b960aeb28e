"""A run's config out of YAML and `key=value`, and back. Imports no torch.

`load` reads a file over its `base:` (yaml_files), builds the dataclasses (schema) and checks them (checks),
all before anything expensive starts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.config import adapter_keys, first_keys, schema
from trainer.config.checks import check
from trainer.config.plain import plain
from trainer.config.run_config import RunConfig
from trainer.folder import run_folder
from trainer.models.config import init_from


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run that the file `path` and each `key=value` describe, checked as far as possible without
    torch.

    `name` defaults to the file's own, `run_dir` to `runs/<name>`. Neither is taken from a `base:`, for
    another file is another run. A config that a run wrote into its folder stands for that folder, wherever it
    is now, unless an override sets `run_dir` or `name`; `path` may be the folder itself. Other relative paths
    are relative to the working directory.

    Raises:
        ValueError: one line with the key, its value and the nearest right key or what is wrong with it.
    """
    from trainer.config import yaml_files

    file = run_folder.config_file(path)
    values = yaml_files.read(file, overrides, own={"name": file.stem, "run_dir": ""})
    given = {override.partition("=")[0] for override in overrides}
    if (home := run_folder.home(file)) and "run_dir" not in given:
        values["run_dir"] = "" if "name" in given else str(home)
    if not home and "model" in values:  # a run's own config has every key
        values["model"] = first_keys.fill(values["model"])
    cfg: RunConfig = schema.build(RunConfig, values, elsewhere=schema.dotted_keys(RunConfig))
    section = values.get("finetune")
    cfg = adapter_keys.fill(cfg, set(section) if isinstance(section, dict) else ())
    cfg.run_dir = cfg.run_dir or f"runs/{cfg.name}"
    if not home and (begins_from := init_from(cfg.model)):
        first_keys.check(cfg.model, begins_from)
    check(cfg)
    return cfg


def earlier(folder: Path) -> Iterator[RunConfig]:
    """Yield the configs that the run in `folder` has had, but for those that this version cannot read."""
    for file in (folder / run_folder.CONFIGS).glob("step-*.yaml"):
        with contextlib.suppress(ValueError):  # of an older version of the project, perhaps
            yield load(file)


def dump(cfg: RunConfig) -> str:
    """The config as YAML with every default written out; `load` reads it back to an equal config."""
    from trainer.config import yaml_files

    return yaml_files.write(plain(cfg))
