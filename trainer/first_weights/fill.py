"""A source's weights → the chunks of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from common.model_plan import matches
from data.corpus.storage import Storage
from data.stream.stream import Stream
from data.tokenizer.comparison import difference
from parallel.engine import Chunk, Engine
from trainer.config import first_keys
from trainer.config.run_config import RunConfig
from trainer.first_weights.adapter_source import AdapterSource
from trainer.first_weights.checkpoint_source import PREFIX
from trainer.first_weights.labels import check_labels
from trainer.first_weights.match import Match, match, with_pooler
from trainer.first_weights.open import Base, open_source
from trainer.first_weights.source import WeightSource, blocks
from trainer.huggingface.adapter import open_adapter
from trainer.models.config import init_from
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.ranks import Ranks
from trainer.record.events import EventLog
from trainer.start.opening import class_names


def begin(
    cfg: RunConfig,
    engine: Engine,
    stream: Stream,
    ranks: Ranks,
    events: EventLog | None = None,
    source: WeightSource | None = None,
) -> WeightSource | None:
    """Fill an engine that was built with drawn weights from `model.init_from`, before its first step; return
    the source. None where there is no such key. Collective.

    An event "init" says which parameters were enlarged, drawn or not taken, and the source's hash.

    ValueError and RuntimeError as of `open_source` and `match`.
    """
    if not (given := init_from(cfg.model)):
        return None
    ranks.together(lambda: check_tokenizer(cfg, stream.sources[0].corpus.storage))
    source = source or open_source(given, ranks)
    chunks = [*engine.frozen(), *engine.chunks()]
    found = matched(chunks, source, cfg, ranks)
    refuse_drawn(found, source, cfg)
    ranks.together(lambda: check_labels(class_names(cfg, stream), source, found, cfg.model.plan().task))
    ranks.together(lambda: fill(chunks, source, found))
    if cfg.finetune.adapter:
        digest = source.digest(ranks)
        ranks.together(lambda: _fill_from_adapter(chunks, cfg, digest))
    engine.load(engine.scalars())
    if events is not None:
        words = found.in_words()
        events.event(
            "init",
            0,
            f"first weights from {source.where}" + (f"; {words}" if words else ""),
            source=source.where,
            hash=source.digest(ranks),
            enlarged=sorted(found.enlarged),
            drawn=list(found.drawn),
            dropped=list(found.dropped),
        )
    return source


def fill_frozen(base: Base | None, chunks: Iterable[Chunk], cfg: RunConfig, ranks: Ranks) -> None:
    """Fill chunks of frozen parameters, `Engine.frozen`; nothing without a base. Collective. An engine is to
    be told by `load` afterwards.

    RuntimeError where the source lacks one: it would stay as it was drawn.
    """
    if base is None:
        return
    chunks = list(chunks)
    found = matched(chunks, base.source, cfg, ranks)
    refuse_drawn(found, base.source, cfg)
    ranks.together(lambda: fill(chunks, base.source, found))


def _fill_from_adapter(chunks: Sequence[Chunk], cfg: RunConfig, base: str) -> None:
    """Fill what fine-tuning adds from `finetune.adapter`. base: hash of the weights that it is added to.

    ValueError, one line, where the adapter is for another base, or has what the model does not add.
    """
    adapter = open_adapter(Path(cfg.finetune.adapter), cfg.model)
    if adapter.base and adapter.base != base:
        raise ValueError(
            f"finetune.adapter={adapter.path}: an adapter for another base: it was trained beside weights of "
            f"the hash {adapter.base}, and those of model.init_from={init_from(cfg.model)} have {base}"
        )
    source = AdapterSource(adapter, cfg.model, cfg.finetune)
    layers = {pattern for pattern, _ in cfg.plan().tensor}
    for name in source.parameters:
        if not any(matches(pattern, name.rpartition(".")[0]) for pattern in layers):
            raise ValueError(
                f"finetune.adapter={adapter.path}: has {name}, which is none of this run's: add its layer to "
                "finetune.targets, or leave that out"
            )
    fill(chunks, source, Match(frozenset(source.parameters), {}, (), ()))


def matched(chunks: Iterable[Chunk], source: WeightSource, cfg: RunConfig, ranks: Ranks) -> Match:
    """Return what becomes of the parameters of all ranks; see `match`. Collective."""
    own = {name: chunk.shape for chunk in chunks if (name := parameter_of(chunk))}
    ours = {name: shape for each in ranks.each_once(own) for name, shape in each.items()}
    another_task = first_keys.is_another_task(cfg.model, source.model)
    found = ranks.together(lambda: match(ours, source, cfg.plan(), another_task=another_task))
    model = cfg.model
    if isinstance(model, TextClassesConfig) and (model.head_layer, model.pool) == ("tanh", "first"):
        return with_pooler(found, ours, source)
    return found


def refuse_drawn(found: Match, source: WeightSource, cfg: RunConfig) -> None:
    """RuntimeError where a frozen parameter is not taken whole: a part of it would stay as it was drawn."""
    for name in (*found.drawn, *sorted(found.enlarged)):
        if not cfg.plan().trained(name):
            raise RuntimeError(
                f"{source.where}: does not have all of {name}, which finetune.method={cfg.finetune.method} "
                "freezes as it was drawn: take finetune.method=full"
            )


def parameter_of(chunk: Chunk) -> str:
    """Return the name of the parameter that a chunk is a block of; "" for a chunk of optimiser state."""
    return chunk.name.removeprefix(PREFIX) if chunk.name.startswith(PREFIX) else ""


@torch.no_grad()
def fill(chunks: Iterable[Chunk], source: WeightSource, found: Match) -> None:
    """Copy the source's blocks into the chunks that overlap them; what is drawn stays as it is."""
    for chunk in chunks:
        name = parameter_of(chunk)
        if name not in found.taken:
            continue
        shape, tensor = list(chunk.tensor.shape), chunk.tensor.detach()
        if name in found.enlarged:  # the rows that the source has
            shape[0] = max(0, min(shape[0], found.enlarged[name] - chunk.offset[0]))
        for rows, offset, size in blocks(shape, chunk.offset):
            tensor[rows].copy_(source.read(found.renamed.get(name, name), offset, size))
            source.forget()
    source.check()


def check_tokenizer(cfg: RunConfig, storage: Storage) -> None:
    """ValueError, one line, where the corpus was made with another tokenizer than the model of
    `model.init_from`: its ids would be read as other words, or its texts have other ids. More tokens it may
    have.
    """
    given = init_from(cfg.model)
    if not given or not cfg.model.vocab:
        return
    file = first_keys.origin(given).tokenizer
    if not file.is_file():
        return
    own = storage.tokenizer()
    theirs = file.read_bytes()
    if own == theirs:
        return
    try:
        here, there = (Tokenizer.from_str(content.decode()) for content in (own, theirs))
    except Exception as error:  # the library raises a bare Exception, whatever is wrong
        raise ValueError(f"model.init_from={given}: {file} cannot be read: {error}") from None
    if found := difference(there, here, f"that of {storage.path}"):
        raise ValueError(
            f"model.init_from={given}: its tokenizer {found}: prepare the corpus with --tokenizer "
            f"{file.parent}"
        )
