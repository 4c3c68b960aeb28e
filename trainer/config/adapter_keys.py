"""`finetune.adapter`: the keys of `finetune:` that an adapter on disk gives. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from trainer.config.run_config import RunConfig
from trainer.huggingface.adapter import open_adapter


def fill(cfg: RunConfig, given: Collection[str]) -> RunConfig:
    """Return the config with the keys of `finetune:` that it leaves out as the adapter has them; the config
    itself where it begins from no adapter.

    given: the keys of `finetune:` that were given.

    ValueError or RuntimeError as of `open_adapter`; ValueError where a key that was given does not fit.
    """
    if not cfg.finetune.adapter or ("method" in given and not cfg.finetune.adds):  # `checks` refuses that
        return cfg
    adapter = open_adapter(Path(cfg.finetune.adapter), cfg.model)
    found = {key: value for key, value in adapter.settings.items() if key not in given}
    filled = replace(cfg, finetune=replace(cfg.finetune, **found))
    for key, value in adapter.settings.items():
        now = getattr(filled.finetune, key)
        wrong = now < value if key == "rank" else now != value
        if wrong and key in ("method", "rank", "bottleneck"):
            raise ValueError(
                f"finetune.{key}={now}: the adapter {adapter.path} has {value}: leave the key out"
            )
    return filled
