"""`germinal data inspect`: what is in a corpus; which documents and text one sequence of a run holds.

inspect(folder, seq_len=0)                      every corpus at `folder`; with seq_len also how it would pack
sequence(cfg, number, seed=…, global_batch=…)   source, epoch, shard, documents and text of one sequence
describe(stream, number)                        the same, of a stream that is open
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.corpus.columns import LABEL
from data.corpus.corpus import Corpus, corpora_in, open_storage
from data.corpus.listing.blocks import block_bounds
from data.corpus.manifest import OFFSET, TOKENS
from data.corpus.tar import TAR_BLOCK, samples
from data.stream.era import Era, IdSpans
from data.stream.packing.counting import Counting, counted_alone
from data.stream.packing.held import HELD
from data.stream.packing.kinds import MOST_SEQ_LEN
from data.stream.packing.of_corpus import documents_of
from data.stream.packing.packing import layout_lengths
from data.stream.stream import Stream


def inspect(folder: str | Path, seq_len: int = 0) -> dict[str, Any]:
    """Describe the corpora at `folder` (or URL): {"corpora": [a dictionary of each]}.

    seq_len: also say how many sequences each way of packing gives; 0: do not.

    Raises ValueError where there is none, RuntimeError where a manifest or an index is damaged.
    """
    if seq_len > MOST_SEQ_LEN:
        raise ValueError(f"--seq-len {seq_len}: at most {MOST_SEQ_LEN}")
    return {"corpora": [_corpus(path, seq_len) for path in corpora_in(folder)]}


def sequence(cfg: DataConfig, number: int, *, seed: int, global_batch: int) -> dict[str, Any]:
    """Describe global sequence `number` of a run with this data section, seed and global batch: see
    `describe`.

    Raises as `Stream.open`; ValueError past the end of the data.
    """
    if number < 0:
        raise ValueError(f"a sequence number is 0 or more, not {number}")
    return describe(Stream.open(cfg, seed=seed, global_batch=global_batch), number)


def write_picture(cfg: DataConfig, number: int, path: Path, *, seed: int, global_batch: int) -> None:
    """Write what a run sees of the picture of global sequence `number` as a PNG: its views, side by side.

    Raises ValueError where the run reads no pictures; RuntimeError where the picture is damaged.
    """
    from PIL.Image import fromarray

    if not cfg.image_size:
        raise ValueError("--out writes a picture, and the run reads none: data.image_size is 0")
    (views,) = Stream.open(cfg, seed=seed, global_batch=global_batch).pictures([number])
    fromarray(np.concatenate(views, axis=1)).save(path, "PNG")


def describe(stream: Stream, number: int) -> dict[str, Any]:
    """Describe global sequence `number` of a stream.

    Under `pieces`, in order, each fragment: `shard`, the file's name; the sample's key (`sample`) and JSON
    (`meta`); the document's place in the shard (`document`) and number of ids (`document_ids`); the
    fragment's `ids`, the first of which is the document's id number `from_id`, counted from 0, and stands in
    `column` of the sequence; their `text`; the document's `class`; and the first byte and length of its
    `picture`. `meta`, `text`, `class` and `picture` are None where they cannot be had. With
    data.packing=marked, `marks` is a number for each of the `ids`, and `marked` the text of those with each
    number. With data.partners, the same of the sequence's partner under `partner`. `followed_tokens` are
    those that another one follows: the targets of next-token prediction; other objectives choose their own.

    Raises ValueError past the end of the data.
    """
    source, era, spans = stream.find(number)
    corpus = era.corpus
    tokenizer = _tokenizer(corpus)
    partner = {}
    if stream.cfg.partners:
        _, other, found = stream.find(number, partner=True)
        partner["partner"] = _pieces(other, found, tokenizer)
    rows = stream.read([number])
    return {
        "sequence": number,
        "source": stream.names[source],
        "corpus": corpus.storage.path,
        "epoch": era.epoch,
        "followed_tokens": int((rows.following >= 0).sum()),
        "quarantined": stream.quarantined.get(number, []),
        "pieces": _pieces(era, spans, tokenizer),
        **partner,
    }


def _pieces(era: Era, spans: IdSpans, tokenizer: Any) -> list[dict[str, Any]]:
    """Describe each fragment: see `describe`."""
    corpus = era.corpus
    described = []
    for document, view, begin, count, column in zip(
        spans.fragments.document.tolist(),
        spans.views,
        spans.first_byte.tolist(),
        spans.ids.tolist(),
        (spans.fragments.row * era.columns + spans.column).tolist(),
    ):
        shard, offset = int(era.shard[document]), int(era.offset[document])
        width = corpus.dtype.itemsize
        values = np.frombuffer(view[begin : begin + count * width], corpus.dtype).tolist()
        key = corpus.sample_key(shard, offset)
        described.append(
            {
                "shard": corpus.manifest.shards[shard].file,
                "sample": key,
                "document": int(era.place[document]),
                "meta": _meta(corpus, shard, int(era.place[document]), key),
                "from_id": (begin - offset) // width,
                "column": column,
                "ids": values,
                "document_ids": int(era.tokens[document]),
                "class": None if era.label[document] < 0 else corpus.manifest.classes[era.label[document]],
                "picture": None if era.media is None else era.media[:2, document].tolist(),
                "text": tokenizer.decode(values, skip_special_tokens=False) if tokenizer else None,
            }
        )
    return _with_marks(described, tokenizer) if era.packing.marked else described


def _with_marks(described: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Ids and marks, in turn, as pieces with `marks`, a number for each id, and `marked`: mark → the text of
    its ids.
    """
    pieces = []
    for piece, marks in zip(described[::2], described[1::2]):
        text: dict[int, Any] = {}
        for mark in sorted(set(marks["ids"]) - {0}):
            ids = [value for value, other in zip(piece["ids"], marks["ids"]) if other == mark]
            text[mark] = tokenizer.decode(ids, skip_special_tokens=False) if tokenizer else None
        whole = piece["document_ids"] // 2
        pieces.append(piece | {"document_ids": whole, "marks": marks["ids"], "marked": text})
    return pieces


def _corpus(path: str, seq_len: int) -> dict[str, Any]:
    storage = open_storage(path)
    manifest = storage.manifest()
    report: dict[str, Any] = {
        "path": path,
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "text_bytes": manifest.text_bytes,
        "bytes_per_token": manifest.text_bytes / max(1, manifest.tokens),
        "shards": len(manifest.shards),
        "shard_bytes": sum(shard.bytes for shard in manifest.shards),
        "dtype": manifest.dtype,
        "block_documents": manifest.block_documents,
        "fingerprint": manifest.fingerprint,
        "tokenizer": vars(manifest.tokenizer),
        "classes": list(manifest.classes),
        "media": list(manifest.media),
        "prepare": dict(manifest.prepare),
        "sources": list(manifest.sources),
    }
    if (row := manifest.row(LABEL)) is not None:
        indexes = (storage.index(shard) for shard in range(len(manifest.shards)))
        labels = np.concatenate([index[row] for index in indexes]).astype(np.int64)
        counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).tolist()
        report["class_documents"] = dict(zip(manifest.classes, counts))
    if manifest.tokens:
        corpus = Corpus(storage)
        lengths, _ = corpus.lengths()
        quantiles = np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1], method="nearest").tolist()
        report["document_tokens"] = dict(zip(("least", "p10", "median", "p90", "most"), quantiles))
        if seq_len:
            report["packing"] = _packings(corpus, int(layout_lengths(lengths).sum()), seq_len)
    return report


def _packings(corpus: Corpus, inputs: int, seq_len: int) -> dict[str, dict[str, Any]]:
    """Of each packing: sequences of an epoch, the share of their inputs that is not padding, the share of
    documents cut, and the share of all `inputs` that no sequence has. No block is packed, but for those whose
    windows are counted.
    """
    manifest = corpus.manifest
    held = {kind: np.zeros(2, dtype=np.int64) for kind in HELD}
    for shard in range(len(manifest.shards)):
        index = corpus.storage.index(shard).astype(np.int64)
        bounds = block_bounds(index.shape[1], manifest.block_documents)
        for kind, of in HELD.items():
            held[kind] += of(documents_of(manifest, index, bounds, kind), seq_len)
    found = {}
    for kind, (cut, taken) in held.items():
        total = int(counted_alone(Counting(corpus, kind, seq_len)).sum())
        found[kind] = {
            "seq_len": seq_len,
            "sequences": total,
            "utilisation": int(taken) / (total * seq_len),
            "documents_cut": int(cut) / manifest.documents,
            "left_out": 1 - int(taken) / inputs,
        }
    return found


def _tokenizer(corpus: Corpus) -> Any:
    """The corpus's tokenizer, or None where its file cannot be read as one."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(corpus.storage.tokenizer().decode())
    except Exception:  # the library raises a bare Exception; ids without text are still an answer
        return None


def _meta(corpus: Corpus, shard: int, place: int, key: str) -> dict[str, Any] | None:
    """A sample's JSON, or None where it cannot be read. Only the bytes between the ids of the previous and of
    the next document are searched, not the whole shard.
    """
    view, index = corpus.storage.open(shard).view, corpus.storage.index(shard)
    begin, end = 0, corpus.manifest.shards[shard].bytes
    if place:
        before = int(index[OFFSET, place - 1] + index[TOKENS, place - 1] * corpus.dtype.itemsize)
        begin = -(-before // TAR_BLOCK) * TAR_BLOCK
    if place + 1 < index.shape[1]:
        end = (int(index[OFFSET, place + 1]) - 1) // TAR_BLOCK * TAR_BLOCK - TAR_BLOCK
    around = memoryview(bytes(view[begin:end]) + bytes(2 * TAR_BLOCK))
    try:
        for sample in samples(around, "shard"):
            if sample.key == key:
                member = sample.members["json"]
                return json.loads(bytes(around[member.offset : member.offset + member.size]))
    except (RuntimeError, ValueError, KeyError):
        pass  # `data verify` reports the damage; the rest of the answer is right
    return None
