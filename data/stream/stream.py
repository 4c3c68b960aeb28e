"""(seed, global sequence number) → one sequence: the whole of the data order, as a pure function.

`Stream.read` takes any numbers in any order. Neither ranks nor micro-batches nor time are arguments, so the
position of a run is one integer, and any number of readers of one stream agree.

    number → (source, rank in the source)     `data.stream.mixture`
    rank → (epoch, era, window of the era)    `Shuffled`: blocks shuffled in the epoch, windows in the era
    window → pieces of documents              `data.stream.pack`
    pieces → ids                              `data.stream.rows`, from the bytes that a `data.corpus.corpus`
    holds
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from common.retry import attempts
from data.config import DataConfig, check
from data.corpus.corpus import Corpus, check_tokenizers, open_corpus
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, written_while_read
from data.stream import mixture
from data.stream.era import Era, block_windows
from data.stream.order import derive_key, permute
from data.stream.pack import Pieces
from data.stream.rows import Plan, Planner, SequenceRows

ORDER_VERSION = 1  # part of every fingerprint: a change of the order must not resume an old run
ERAS_KEPT = 3  # of each source: an epoch's end, a step that straddles two eras, and one to spare


class Shuffled:
    """One corpus's sequences in shuffled order, epoch after epoch. `sequences`: in an epoch."""

    def __init__(self, corpus: Corpus, cfg: DataConfig, key: int) -> None:
        self.corpus = corpus
        self._windows = block_windows(corpus, cfg.packing, cfg.seq_len)
        self.sequences = int(self._windows.sum())
        self._cfg, self._key = cfg, key
        self._epoch = lru_cache(maxsize=2)(self._shuffle_blocks)
        self.era = lru_cache(maxsize=ERAS_KEPT)(self._open_era)

    def locate(self, ranks: np.ndarray) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """(epoch, era, which of `ranks`, their windows of the era) for each era that `ranks` fall in."""
        epochs, places = np.divmod(ranks, self.sequences)
        for epoch in np.unique(epochs).tolist():
            _, bounds = self._epoch(epoch)
            mine = np.flatnonzero(epochs == epoch)
            eras = np.searchsorted(bounds, places[mine], side="right") - 1
            for era in np.unique(eras).tolist():
                rows = mine[eras == era]
                size = int(bounds[era + 1] - bounds[era])
                key = derive_key(self._key, "windows", epoch, era)
                yield epoch, era, rows, permute(places[rows] - bounds[era], size, key)

    def _shuffle_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the blocks in this epoch's order, the first sequence of each era and the end)."""
        count = len(self._windows)
        blocks = permute(np.arange(count), count, derive_key(self._key, "blocks", epoch))
        ends = np.cumsum(self._windows[blocks])
        last = np.minimum(
            np.arange(1, -(-count // self._cfg.shuffle_blocks) + 1) * self._cfg.shuffle_blocks, count
        )
        return blocks, np.concatenate(([0], ends[last - 1]))

    def _open_era(self, epoch: int, era: int) -> Era:
        blocks, _ = self._epoch(epoch)
        size = self._cfg.shuffle_blocks
        opened = Era(self.corpus, blocks[era * size : (era + 1) * size], self._cfg.packing, self._cfg.seq_len)
        following = blocks[(era + 1) * size : (era + 2) * size]
        self.corpus.storage.prefetch(np.unique(self.corpus.block_shard[following]).tolist())
        return opened


class Stream:
    """The training stream of a run. `length`: its sequences, where every source has max_epochs; else None.

    `vocab`: of the tokenizer; `eos`: the separator's id; `names`: the sources'; `quarantined`: the sequences
    masked so far, each with the damage in it (dicts: sequence, source, shard, sample, offset). Whoever keeps
    the list takes them out.
    """

    def __init__(self, corpora: Sequence[Corpus], cfg: DataConfig, *, seed: int, global_batch: int) -> None:
        check(cfg)
        for a, b in pairwise(corpora):
            check_tokenizers("data.sources", a, b)
        self.cfg = cfg
        self.seq_len = cfg.seq_len
        self.vocab = corpora[0].manifest.tokenizer.vocab
        self.eos = corpora[0].eos
        self.names = [source.name or source.path for source in cfg.sources]
        self.seed = seed
        self.quarantined: dict[int, list[dict[str, Any]]] = {}
        prints = [corpus.manifest.fingerprint for corpus in corpora]
        # A source is known by its content: renaming, moving or adding another one keeps its order.
        self._prints = [f"{p}/{prints[:i].count(p)}" for i, p in enumerate(prints)]
        self.sources = [
            Shuffled(corpus, cfg, derive_key(seed, ORDER_VERSION, name))
            for corpus, name in zip(corpora, self._prints)
        ]
        caps = [
            max(1, int(source.max_epochs * shuffled.sequences)) if source.max_epochs else None
            for source, shuffled in zip(cfg.sources, self.sources)
        ]
        stages = _stages(cfg, self.names, [corpus.manifest.tokens for corpus in corpora], global_batch)
        self.mixture = mixture.build(stages, caps, derive_key(seed, ORDER_VERSION, "mixture"))
        self.length = self.mixture.length

    @classmethod
    def open(cls, cfg: DataConfig, *, seed: int, global_batch: int) -> Stream:
        """Opens the corpora of a config. `global_batch` only turns a stage's step into a sequence number.

        Raises ValueError, one line, when the config is wrong, a corpus is missing or empty, or two corpora
        have different tokenizers; RuntimeError when a manifest, an index or a shard's size is damaged.
        """
        check(cfg)
        return cls(
            [open_corpus(source.path, cfg) for source in cfg.sources],
            cfg,
            seed=seed,
            global_batch=global_batch,
        )

    @property
    def sequences_per_epoch(self) -> dict[str, int]:
        """Sequences that one pass over each source gives."""
        return {name: source.sequences for name, source in zip(self.names, self.sources)}

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the whole stream, stages to come included."""
        return self._fingerprint(len(self.mixture.segments))

    def fingerprint_at(self, number: int) -> str:
        """Hash of all that determines the sequences before `number`.

        A checkpoint keeps this one: weights, stages and sources may still change for what has not come yet.
        """
        return self._fingerprint(sum(segment.start < number for segment in self.mixture.segments))

    def read(self, numbers: Sequence[int] | np.ndarray) -> SequenceRows:
        """The sequences with these global numbers, in this order.

        Raises RuntimeError naming shard, sample and byte where a document is damaged (with
        on_corrupt=quarantine its sequences are masked instead); ValueError past the end of the data.
        """
        for _ in attempts(READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, 1.0):
            plan = self.plan(numbers)
            rows = plan.rows(0, len(numbers), document_mask=self.cfg.document_mask)
            if plan.holds():
                return rows
        raise written_while_read(f"data.sources {', '.join(self.names)}")

    def plan(self, numbers: Sequence[int] | np.ndarray) -> Plan:
        """Where these sequences are; `Plan.rows` then makes any run of them, good only if `Plan.holds`
        afterwards. Raises as `read` does.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        planner = Planner(numbers, self.seq_len, self.eos, self.sources[0].corpus.dtype)
        for era, mine, windows, source in self._groups(numbers):
            pieces = era.packing.pieces(windows)
            bad = era.check(pieces.document)
            if bad.any():
                rows = mine[pieces.row[bad]]
                self._damaged(numbers[rows], source, era, pieces.document[bad])
                planner.mask(rows)
            planner.add(era, pieces, mine, source)
        return planner.plan()

    def find(self, number: int) -> tuple[int, int, Era, Pieces]:
        """(source, epoch, era, pieces) of one sequence: for people who look for its text."""
        sources, ranks = self.mixture.locate(np.array([number]))
        shuffled = self.sources[source := int(sources[0])]
        epoch, era, _, windows = next(shuffled.locate(ranks))
        opened = shuffled.era(epoch, era)
        return source, epoch, opened, opened.packing.pieces(windows)

    def _groups(self, numbers: np.ndarray) -> Iterator[tuple[Era, np.ndarray, np.ndarray, int]]:
        """(era, which of `numbers`, their windows, source) for each era that `numbers` fall in."""
        sources, ranks = self.mixture.locate(numbers)
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            shuffled = self.sources[source]
            for epoch, era, rows, windows in shuffled.locate(ranks[mine]):
                yield shuffled.era(epoch, era), mine[rows], windows, source

    def _damaged(self, numbers: np.ndarray, source: int, era: Era, documents: np.ndarray) -> None:
        if self.cfg.on_corrupt == "stop":
            raise RuntimeError(str(era.damage(int(documents[0]))))
        for number, document in zip(numbers.tolist(), documents.tolist()):
            found = era.damage(document)
            entry = {"sequence": number, "source": self.names[source], **vars(found)}
            listed = self.quarantined.setdefault(number, [])
            if entry not in listed:  # a sequence may be read again
                listed.append(entry)

    def _fingerprint(self, segments: int) -> str:
        history = [
            [segment.start, [[p, w] for p, w in zip(self._prints, segment.weights) if w]]
            for segment in self.mixture.segments[:segments]
        ]
        cfg = self.cfg
        parts = [ORDER_VERSION, self.seed, cfg.seq_len, cfg.packing, cfg.shuffle_blocks, history]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stages(
    cfg: DataConfig, names: Sequence[str], tokens: Sequence[int], global_batch: int
) -> list[tuple[int, list[float]]]:
    """(first sequence, weights) of each stage, the first at 0."""
    weights = {name: source.weight for name, source in zip(names, cfg.sources)}
    stages = [(0, dict(weights))]
    for stage in cfg.stages:
        weights |= stage.weights
        if stage.from_step == 0:
            stages.pop()
        stages.append((stage.from_step * global_batch, dict(weights)))
    return [(start, list(_tempered(w, tokens, cfg.temperature).values())) for start, w in stages]


def _tempered(weights: dict[str, float], tokens: Sequence[int], temperature: float) -> dict[str, float]:
    if temperature == 0:
        return weights
    # Rounded, so that the last bit of a machine's pow() is no part of the data order.
    tempered = {
        name: round(weight * (n / max(tokens)) ** (1 / temperature), 9)
        for (name, weight), n in zip(weights.items(), tokens)
    }
    for name, weight in weights.items():
        if weight and not tempered[name]:
            raise ValueError(
                f"data.temperature={temperature:g} leaves nothing of source {name!r}, weight {weight:g}: "
                "raise it, or give the source the weight 0"
            )
    return tempered
