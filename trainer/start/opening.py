"""What a run reads, opened on every rank and known to be the same on all."""

from collections.abc import Mapping

import numpy as np

from data.config import check
from data.corpus.corpus import Corpus, open_corpus
from data.stream.packing.counting import Counting, countings
from data.stream.stream import Stream
from parallel.layout.layout import Layout
from trainer.config import checks
from trainer.config import run_config as configs
from trainer.config.plain import defaults, plain
from trainer.config.run_config import RunConfig
from trainer.folder.run_folder import away
from trainer.objectives.context import ObjectiveContext
from trainer.ranks import Ranks
from trainer.start.agreement import agree, corpora, program, settings, software
from trainer.state import Identity

COUNTS = "counts"  # of corpora, in the run folder, where they cannot be kept beside the corpus


def open_alike(cfg: RunConfig, ranks: Ranks) -> tuple[RunConfig, Layout, Stream]:
    """Return the config as it is on these ranks (`checks.on_ranks`), the layout and the stream of the run,
    once all ranks are known to have the same. Collective: the first collective that a rank calls after it has
    joined.

    ValueError where they differ; or where the layout or a corpus cannot be had, on every rank.
    """
    agree(ranks, program(cfg), settings(cfg))
    cfg = ranks.together(lambda: checks.on_ranks(cfg, ranks.world))
    layout = ranks.together(lambda: checks.layout(cfg, ranks.world))
    stream = open_stream(cfg, ranks)
    agree(ranks, ranks.together(lambda: corpora(cfg.data, stream)))
    return cfg, layout, stream


def open_stream(cfg: RunConfig, ranks: Ranks) -> Stream:
    """Open the stream of the config's sources. Collective: what must be counted of a corpus, each rank counts
    a share of. ValueError where the model's vocabulary cannot hold its tokens, or its head the corpora's
    classes; RuntimeError where a corpus that the run has read is not there.
    """
    sources = ranks.together(lambda: _open_sources(cfg, ranks))
    counted = [_count(counting, ranks) for counting in countings(sources, cfg.data)]
    return ranks.together(lambda: _stream(cfg, sources, counted))


def _open_sources(cfg: RunConfig, ranks: Ranks) -> list[Corpus]:
    check(cfg.data)
    spare = [cfg.folder / COUNTS]
    found = []
    for source in cfg.data.sources:
        try:
            shared = {"rank": ranks.rank, "ranks": ranks.world}
            found.append(open_corpus(source.path, cfg.data, spare, tell=False, **shared))
        except ValueError:
            if reason := away(cfg.folder, source.path):
                raise RuntimeError(reason) from None
            raise
    return found


def _count(counting: Counting, ranks: Ranks) -> np.ndarray:
    """The windows of each block of a corpus. Collective: where some rank does not have them, because they
    were never counted or are not where that rank can read them, all ranks count them again. Rank 0 says which
    tables are damaged, on whichever rank.
    """
    if not ranks.all(counting.windows is not None and not counting.damaged):
        known = ranks.gather((counting.windows is not None, counting.listed, counting.damaged))
        there, listed, damaged = zip(*known)
        for lines in damaged:
            counting.damaged.update(lines)
        if ranks.rank == 0:
            counting.tell()
        if not all(there):
            _count_together(counting, ranks, lists=not all(listed))
    assert counting.windows is not None
    return counting.windows


def _count_together(counting: Counting, ranks: Ranks, *, lists: bool) -> None:
    """Count, and keep what was counted where every rank finds it. `lists`: see `Counting.share`."""
    share = ranks.together(lambda: counting.share(ranks.rank, ranks.world, lists=lists))
    counting.join(ranks.gather(share))
    ranks.on_rank_zero(counting.keep)  # the others wait
    # A corpus may be on a disk of each node's own.
    if not ranks.all(counting.is_kept()) and ranks.rank == 0:
        counting.keep(last=True)


def _stream(cfg: RunConfig, sources: list[Corpus], windows: list[np.ndarray]) -> Stream:
    stream = Stream(sources, cfg.data, seed=cfg.seed, global_batch=cfg.train.global_batch, windows=windows)
    context = objective_context(cfg, stream)
    if wrong := context.wrong_corpora(cfg.model.vocab, cfg.objective):
        raise ValueError(wrong)
    return stream


def objective_context(cfg: RunConfig, stream: Stream) -> ObjectiveContext:
    """Return what the objective may know of the run."""
    return ObjectiveContext(
        seed=cfg.seed,
        seq_len=cfg.data.seq_len,
        vocab=stream.vocab,
        eos=stream.eos,
        tokenizer=stream.sources[0].corpus.storage.tokenizer,
        model=cfg.model,
        classes=len(stream.classes),
        tokens=sum(source.corpus.manifest.tokens for source in stream.sources),
        class_weights=cfg.finetune.class_weights,
    )


def class_names(cfg: RunConfig, stream: Stream) -> list[str]:
    """Return the names of the model's classes, by their numbers, as far as config and corpora state them."""
    if "classes" in cfg.objective.needs:
        return list(stream.classes)
    if cfg.objective.kind == "tags":
        return list(getattr(cfg.objective, "tags", ())) or list(stream.tags)
    return []


def identity(
    cfg: RunConfig, stream: Stream, position: int, base: Mapping[str, str] | None = None
) -> Identity:
    """Return what a checkpoint made at `position` of the stream must share with a run that loads it.

    base: see `Identity`; None: nothing is frozen.
    """
    entry = stream.sources[0].corpus.manifest.tokenizer
    template = all(source.corpus.manifest.has_template for source in stream.sources)
    return Identity(
        data=stream.fingerprint_at(position),
        seed=cfg.seed,
        # Without the place of the first weights, which a checkpoint needs no more.
        model={key: value for key, value in plain(cfg.model).items() if key != "init_from"},
        model_defaults={k: value for k, value in defaults(type(cfg.model)).items() if k != "init_from"},
        settings=configs.settings(cfg),
        tokenizer={"sha256": entry.sha256, "eos": entry.eos, "template": template},
        software=software(cfg),
        classes=class_names(cfg, stream),
        base=dict(base or {}),
    )
