"""(seed, global sequence number) → one sequence: the whole of the data order, as a pure function.

`Stream.read` takes any numbers in any order. Neither ranks nor micro-batches nor time are arguments, so the
position of a run is one integer, and any number of readers of one stream agree. The steps:

    global sequence number
      │  Mixture.locate           mixture.py   which source, and which sequence of that source
      ▼
    source, ordinal
      │  ShuffledOrder.locate     order.py     blocks are shuffled in an epoch, windows in an era
      ▼
    epoch, era, window
      │  Era.spans                era.py       fragments of documents (packing/), their bytes in the shards
      │                                        (data.corpus), each document held against its checksum
      │                                        (checks.py)
      ▼
    spans of ids
      │  LocatedRows.join, .rows  rows.py      ids, separators and padding as arrays
      ▼
    SequenceRows
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from common.retry import repeats
from data.config import DataConfig, check
from data.corpus.corpus import Corpus, DamagedDocument, check_alike, open_corpus
from data.corpus.storage import READ_AGAIN, READ_AGAIN_PAUSE_SECONDS, written_while_read
from data.stream import mixture
from data.stream.era import Era, IdSpans, Part, ShuffledCorpus, check_sequences
from data.stream.images import ImagesAhead, check_pictures
from data.stream.order import another, derive_key
from data.stream.packing.counting import windows_of
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.packing import Packing
from data.stream.rows import LocatedRows, SequenceRows
from data.stream.weights import mixture_stages

ORDER_VERSION = 1  # part of every fingerprint: a change of the order must not resume an old run


class Stream:
    """The training stream of a run.

    windows: sequences of each block of each of `corpora`; see `data.stream.packing.counting`.

    length: its sequences, where every source has max_epochs; else None.
    seq_len, vocab, eos: inputs of a sequence; the tokenizer's vocabulary; the id of the separator.
    names, sources: of each source its name and its shuffled corpus.
    quarantined: under data.on_corrupt=quarantine the sequences that were masked so far, each with the damage
        in it (dicts: sequence, source, shard, sample, offset). Who writes the list down removes the entries.
    """

    def __init__(
        self, corpora: list[Corpus], cfg: DataConfig, windows: list[Any], *, seed: int, global_batch: int
    ) -> None:
        check(cfg)
        check_alike("data.sources", corpora)
        for corpus in corpora:
            check_pictures("data.sources", corpus, cfg)
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
            ShuffledCorpus(corpus, cfg, derive_key(seed, ORDER_VERSION, name), counted)
            for corpus, name, counted in zip(corpora, self._prints, windows)
        ]
        for i, (name, shuffled) in enumerate(zip(self.names, self.sources)):
            check_sequences(f"data.sources[{i}]: {name}", shuffled.sequences, cfg)
        caps = [
            max(1, int(source.max_epochs * shuffled.sequences)) if source.max_epochs else None
            for source, shuffled in zip(cfg.sources, self.sources)
        ]
        sizes = [c.manifest.documents if cfg.image_size else c.manifest.tokens for c in corpora]
        stages = mixture_stages(cfg, self.names, sizes, global_batch)
        self.mixture = mixture.build(stages, caps, derive_key(seed, ORDER_VERSION, "mixture"))
        self.length = self.mixture.length

    @classmethod
    def open(cls, cfg: DataConfig, *, seed: int, global_batch: int) -> Stream:
        """Open the corpora of a config, in this process alone. `global_batch` only turns a stage's step into
        a sequence number.

        Raises ValueError, one line, where the config is wrong, a corpus is missing or empty, or two corpora
        have different tokenizers; RuntimeError where a manifest or a shard's size is damaged, or an index
        that has to be read.
        """
        check(cfg)
        corpora = [open_corpus(source.path, cfg) for source in cfg.sources]
        windows = windows_of(corpora, cfg)
        return cls(corpora, cfg, seed=seed, global_batch=global_batch, windows=windows)

    @property
    def document_mask(self) -> bool:
        """Whether rows say which document each of their tokens is of: always where a row is of one document
        alone, for the padding is a document of its own.
        """
        return self.cfg.document_mask or self.packing.alone

    @property
    def packing(self) -> type[Packing]:
        """How documents fill sequences."""
        return PACKINGS[self.cfg.packing]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the documents' labels; empty where no source states any."""
        return next((found for source in self.sources if (found := source.corpus.manifest.classes)), ())

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of the tags of words; empty where no source states any."""
        recipes = (source.corpus.manifest.prepare.get("settings", {}) for source in self.sources)
        return next((tuple(found) for recipe in recipes if (found := recipe.get("tag_name"))), ())

    @property
    def tensors(self) -> tuple[str, ...]:
        """The arrays of `SequenceRows` that a batch has; see `Batch`."""
        names: tuple[str, ...] = (
            "tokens",
            "following",
            "positions",
            "documents",
            "partner",
            "partner_following",
        )
        if self.packing.marked:
            names = (*names, "marks", "following_marks")
        return (*names, "length", "label") if self.packing.alone else names

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
        for _ in range(READ_AGAIN):
            located = self.locate(numbers)
            rows = located.rows(0, len(numbers), document_mask=self.document_mask)
            if located.unchanged():
                return rows
            time.sleep(READ_AGAIN_PAUSE_SECONDS)
        raise written_while_read(f"data.sources {', '.join(self.names)}")

    def locate(self, numbers: Sequence[int] | np.ndarray) -> LocatedRows:
        """Where the ids of these sequences are, their documents checked. Raises as `read` does.

        `LocatedRows.rows` then makes any run of them; the rows are right only if `LocatedRows.unchanged` is
        true afterwards.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        parts = []
        for era, part in self._parts(numbers):
            if part.spans.damaged.any():
                self._damaged(numbers, era, part)
            parts.append(part)
        dtype = self.sources[0].corpus.dtype
        return LocatedRows.join(
            numbers,
            parts,
            seq_len=self.seq_len,
            packing=self.packing,
            eos=self.eos,
            dtype=dtype,
            partners=self.cfg.partners,
        )

    def pictures(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """The views of these sequences' pictures, uint8 [sequences, views, size, size, 3].

        Raises RuntimeError naming shard, sample and byte of a damaged picture; with on_corrupt=quarantine its
        views are black.
        """
        located = self.locate(numbers)
        images = self.images_ahead()
        try:
            decoded = images.submit(located, 0, len(located.numbers))
            for row, reason in decoded.wait().items():
                self.damaged_picture(int(located.numbers[row]), reason)
                decoded.pixels[row] = 0
        finally:
            images.close()
        return decoded.pixels

    def images_ahead(self) -> ImagesAhead:
        """Threads that decode the pictures of this stream's rows; the caller closes them."""
        return ImagesAhead(self.cfg, self.seed, self.eos, self.damaged_picture)

    def damaged_picture(self, number: int, reason: str) -> None:
        """Raise the error on a sequence whose picture cannot be shown; on_corrupt=quarantine: list it."""
        source, era, spans = self.find(number)
        found = era.damaged_picture(int(spans.fragments.document[0]), reason)
        if self.cfg.on_corrupt == "stop":
            raise repeats(RuntimeError(str(found)))
        self._list(number, source, found)

    def find(self, number: int, *, partner: bool = False) -> tuple[int, Era, IdSpans]:
        """(source, era, spans of its ids) of one sequence, or of its partner: for people who look for its
        text.
        """
        sources, ordinals = self.mixture.locate(np.array([number]))
        if partner:
            ordinals = self._partners(sources, ordinals)
        era, part = next(self._located(sources, ordinals))
        return part.source, era, part.spans

    def _parts(self, numbers: np.ndarray) -> Iterator[tuple[Era, Part]]:
        """(era, the rows that are of it) for each era that some of `numbers` are of, or their partners."""
        sources, ordinals = self.mixture.locate(numbers)
        if self.cfg.partners:
            ordinals = np.concatenate((ordinals, self._partners(sources, ordinals)))
            sources = np.tile(sources, 2)
        return self._located(sources, ordinals)

    def _located(self, sources: np.ndarray, ordinals: np.ndarray) -> Iterator[tuple[Era, Part]]:
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            shuffled = self.sources[source]
            for place, which, windows in shuffled.order.locate(ordinals[mine]):
                era = shuffled.era(place)
                yield era, Part(mine[which], source, era.spans(windows))

    def _partners(self, sources: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        """The ordinals of the sequences' partners: of the same source and epoch, hence never the same window
        of the same blocks.
        """
        partners = np.empty_like(ordinals)
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            size = self.sources[source].sequences
            epochs, places = np.divmod(ordinals[mine], size)
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                key = derive_key(self.seed, ORDER_VERSION, self._prints[source], "partners", epoch)
                partners[mine[here]] = epoch * size + another(places[here], size, key)
        return partners

    def _damaged(self, numbers: np.ndarray, era: Era, part: Part) -> None:
        """Raise the error on the first damaged document; under on_corrupt=quarantine list all."""
        fragments, damaged = part.spans.fragments, part.spans.damaged
        documents = fragments.document[damaged].tolist()
        if self.cfg.on_corrupt == "stop":
            raise repeats(RuntimeError(str(era.damaged_document(documents[0]))))
        # A partner's damage masks the sequence too, and is listed for it.
        rows = part.rows[fragments.row[damaged] // self.packing.parts] % len(numbers)
        for number, document in zip(numbers[rows].tolist(), documents):
            self._list(number, part.source, era.damaged_document(document))

    def _list(self, number: int, source: int, found: DamagedDocument) -> None:
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
        parts: list[Any] = [ORDER_VERSION, self.seed, cfg.seq_len, cfg.packing, cfg.shuffle_blocks, history]
        parts += ["partners"] * cfg.partners
        if cfg.image_size:
            parts.append(["pictures", cfg.image_size, cfg.image_views, asdict(cfg.augment)])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
