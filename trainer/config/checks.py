"""What the keys of a config must agree on: all of it before anything expensive starts. Imports no torch.

Each field states its key's meaning, unit, limits and what it may not be combined with; `keys` says how, and
checks them. Arithmetic over several keys is checked here: by `check`, and where the number of ranks is known
by `layout`.
"""

import re

from data.config import check as check_data
from parallel.layout.layout import Layout, check_batch, check_stages, resolve
from trainer.config import keys, schema
from trainer.config.run_config import RunConfig


def check(cfg: RunConfig) -> None:
    """Check each key, and what several keys must agree on, except the layout (`layout` checks that).

    Raises:
        ValueError: one line with the key and its value.
    """
    keys.check(cfg)
    cfg.model.check()
    cfg.model.check_seq_len(cfg.data.seq_len)
    check_data(cfg.data)
    train = cfg.train
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.name):
        raise ValueError(f"name={cfg.name!r}: not a plain folder name (letters, digits, . _ -)")
    whole, rest = divmod(train.global_batch, train.micro_batch)
    if rest:
        raise ValueError(
            f"train.global_batch={train.global_batch}: not a multiple of "
            f"train.micro_batch={train.micro_batch}: {whole}·{train.micro_batch} + {rest}"
        )
    if train.global_batch * (cfg.data.seq_len + 1) not in schema.INT64:
        raise ValueError(
            f"train.global_batch={train.global_batch}, data.seq_len={cfg.data.seq_len}: more tokens "
            "in a step than 64 bits count"
        )
    parameters = cfg.model.parameters().total
    if 4 * parameters not in schema.INT64:
        raise ValueError(
            f"{', '.join(cfg.model.sizes_to_lower())}: a model of {parameters:.3g} parameters, more bytes "
            "than 64 bits count: lower one of the two"
        )


def layout(cfg: RunConfig, world: int) -> Layout:
    """Return the layout of the run on `world` ranks, once model and batch are known to divide so.

    Raises:
        ValueError: one line with the arithmetic that fails.
    """
    found = resolve(cfg.parallel, world)
    cfg.model.check_layout(tp=found.tp, cp=found.cp)
    for key, blocks in cfg.model.block_counts().items():
        check_stages(found, blocks=blocks, key=key, cut=cfg.parallel.cut)
    check_batch(
        found,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
        seq_len=cfg.data.seq_len,
    )
    return found
