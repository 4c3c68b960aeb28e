"""What the keys of a config must agree on: all of it before anything expensive starts. Imports no torch.

Each field states its key's meaning, unit, limits and what it may not be combined with; `keys` says how, and
checks them. Arithmetic over several keys is checked here: by `check`, and where the number of ranks is known
by `layout`.
"""

import re
import shlex
from dataclasses import replace
from urllib.parse import urlsplit

from data.config import check as check_data
from parallel.config import LayoutConfig, ParallelConfig
from parallel.layout.layout import Layout, check_batch, check_stages, resolve
from trainer.config import keys, schema
from trainer.config.run_config import RunConfig
from trainer.models.config import NEXT_TOKEN, init_from
from trainer.models.pictures import HasClasses, pictures_of
from trainer.models.registry import MODELS

AXES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
LONGEST_NAME = 200  # a file's name has at most 255 bytes, and more is put before and behind


def check(cfg: RunConfig) -> None:
    """Check each key, and what several keys must agree on, except the layout (`layout` checks that).

    Raises:
        ValueError: one line with the key and its value.
    """
    keys.check(cfg)
    cfg.model.check()
    check_data(cfg.data)
    _check_objective(cfg)
    _check_row_length(cfg)
    _check_finetune(cfg)
    train = cfg.train
    if train.ranks and (len(train.ranks) != 2 or train.ranks[0] > train.ranks[1]):
        raise ValueError(f"train.ranks={train.ranks}: give the fewest and the most ranks, such as [2, 4]")
    for axis in AXES if cfg.parallel.layouts else ():
        if (size := getattr(cfg.parallel, axis)) != getattr(ParallelConfig, axis):
            raise ValueError(
                f"parallel.{axis}={size}: parallel.layouts has the sizes: put {axis} there, or set "
                "parallel.layouts=[]"
            )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cfg.name):
        raise ValueError(f"name={cfg.name!r}: not a plain folder name (letters, digits, . _ -)")
    if len(cfg.name) > LONGEST_NAME:
        raise ValueError(
            f"name={cfg.name[:20]}…: {len(cfg.name)} characters: give at most {LONGEST_NAME}, for files are "
            "called after it"
        )
    if (target := cfg.supervise.notify) and (wrong := _wrong_target(target)):
        raise ValueError(f"supervise.notify={target!r}: {wrong}: give an http(s) URL or a command")
    whole, rest = divmod(train.global_batch, train.micro_batch)
    if rest:
        raise ValueError(
            f"train.global_batch={train.global_batch}: not a multiple of "
            f"train.micro_batch={train.micro_batch}: {whole}·{train.micro_batch} + {rest}"
        )
    if train.global_batch * (cfg.row_length + 1) not in schema.INT64:
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


def _check_row_length(cfg: RunConfig) -> None:
    """Raise ValueError where the model does not take rows as long as the objective makes them."""
    try:
        cfg.model.check_seq_len(cfg.row_length)
    except ValueError as error:
        if cfg.row_length == cfg.data.seq_len:
            raise
        raise ValueError(
            f"objective.kind={cfg.objective.kind} makes rows of {cfg.row_length} tokens out of "
            f"data.seq_len={cfg.data.seq_len}, and of such rows: {error}"
        ) from None


def _check_objective(cfg: RunConfig) -> None:
    """Raise ValueError where the objective and the model or the data do not go together."""
    missing = cfg.objective.needs - cfg.model.offers
    if missing:
        fit = [kind for kind, model in MODELS.items() if cfg.objective.needs <= model.offers]
        raise ValueError(
            f"objective.kind={cfg.objective.kind}: needs a model that offers {', '.join(sorted(missing))}, "
            f"which model.kind={cfg.model.kind} does not: {' or '.join(fit) or 'no model'} does"
        )
    cfg.objective.check(cfg.model, cfg.data)
    if cfg.train.global_batch < cfg.objective.least_rows:
        raise ValueError(
            f"train.global_batch={cfg.train.global_batch}: objective.kind={cfg.objective.kind} tells a row "
            f"from the others of its global batch: set at least {cfg.objective.least_rows}"
        )
    if cfg.data.image_size and pictures_of(cfg.model) is None:
        raise ValueError(
            f"data.image_size={cfg.data.image_size}: model.kind={cfg.model.kind} takes no pictures: leave "
            "data.image_size out"
        )
    if cfg.train.eval_bias and NEXT_TOKEN not in cfg.model.offers:
        raise ValueError(
            f"train.eval_bias: model.kind={cfg.model.kind} predicts no next token, so it gives sentences no "
            "likelihood: set it to []"
        )
    if cfg.track.samples and NEXT_TOKEN not in cfg.model.offers:
        raise ValueError(
            f"track.samples: model.kind={cfg.model.kind} predicts no next token, so it continues no prompts: "
            "set it to []"
        )


def _check_finetune(cfg: RunConfig) -> None:
    """Raise ValueError where what is asked of fine-tuning has no place in the model or the run."""
    cfg.plan()
    if cfg.finetune.adapter and not cfg.finetune.adds:
        raise ValueError(
            f"finetune.adapter={cfg.finetune.adapter}: finetune.method={cfg.finetune.method} has no adapter: "
            "set method to lora or adapters"
        )
    if cfg.finetune.freezes and not init_from(cfg.model):
        raise ValueError(
            f"finetune.method={cfg.finetune.method} freezes weights, which would stay as they are drawn, for "
            "model.init_from is empty: name a Hugging Face folder or a run there"
        )
    weights, model = cfg.finetune.class_weights, cfg.model
    if weights and isinstance(model, HasClasses) and len(weights) != model.classes:
        raise ValueError(
            f"finetune.class_weights={weights}: {len(weights)} weights for model.classes={model.classes}: "
            "give one for each"
        )
    if weights and cfg.objective.kind != "classification":
        raise ValueError(
            f"finetune.class_weights={weights}: objective.kind={cfg.objective.kind} tells no classes apart: "
            "leave the weights out"
        )
    if cfg.finetune.metric and not cfg.data.heldout:
        raise ValueError(f"finetune.metric={cfg.finetune.metric}: is a held-out set's: give data.heldout")
    if weights and not sum(weights):
        raise ValueError(f"finetune.class_weights={weights}: no class counts: give one of them a weight")
    if cfg.finetune.patience and not cfg.train.eval_every:
        raise ValueError(
            f"finetune.patience={cfg.finetune.patience}: train.eval_every=0 evaluates at the end alone: set "
            "train.eval_every"
        )


def _wrong_target(target: str) -> str:
    try:
        words = shlex.split(target)
    except ValueError as error:
        return str(error)
    if not words:
        return "an empty command"
    is_url = "://" in words[0]
    if not is_url:
        return ""
    try:
        host, _ = urlsplit(target).hostname, urlsplit(target).port
    except ValueError as error:
        return str(error)
    return "" if host and re.match(r"https?://[^/\s]\S*$", target) else "not a URL of http or https"


def layout(cfg: RunConfig, world: int) -> Layout:
    """Return the layout of the run on `world` ranks, once model and batch are known to divide so.

    Raises:
        ValueError: one line with the arithmetic that fails.
    """
    return _layout(on_ranks(cfg, world), world)


def on_ranks(cfg: RunConfig, world: int) -> RunConfig:
    """Return the config as it is on `world` ranks: with the sizes of the first of `parallel.layouts` that
    fits them, and its micro-batch; `cfg` itself where there are no such layouts.

    Raises:
        ValueError: one line; `train.ranks` excludes the number, or no layout fits it.
    """
    if cfg.train.ranks and not cfg.train.ranks[0] <= world <= cfg.train.ranks[1]:
        fewest, most = cfg.train.ranks
        raise ValueError(
            f"train.ranks={cfg.train.ranks}: this start has {_ranks(world)}: start {fewest} to {most}, or "
            "change train.ranks"
        )
    if not cfg.parallel.layouts:
        return cfg
    wrong = []
    for number, sizes in enumerate(cfg.parallel.layouts):
        found = _with_sizes(cfg, sizes)
        try:
            keys.check(found)  # what the sizes may not be combined with
            _layout(found, world)
        except ValueError as error:
            wrong.append(f"[{number}] {error}")
        else:
            return found
    raise ValueError(f"parallel.layouts: none fits {_ranks(world)}: {'; '.join(wrong)}")


def _with_sizes(cfg: RunConfig, sizes: LayoutConfig) -> RunConfig:
    axes = {axis: getattr(sizes, axis) for axis in AXES}
    train = replace(cfg.train, micro_batch=sizes.micro_batch or cfg.train.micro_batch)
    return replace(cfg, parallel=replace(cfg.parallel, **axes), train=train)


def _ranks(world: int) -> str:
    return f"{world} rank{'s' * (world > 1)}"


def _layout(cfg: RunConfig, world: int) -> Layout:
    found = resolve(cfg.parallel, world)
    cfg.model.check_layout(tp=found.tp, cp=found.cp)
    for key, blocks in cfg.model.block_counts().items():
        check_stages(found, blocks=blocks, key=key, cut=cfg.parallel.cut)
    check_batch(
        found,
        global_batch=cfg.train.global_batch,
        micro_batch=cfg.train.micro_batch,
        positions=cfg.model.positions_of_row(cfg.row_length),
    )
    return found
