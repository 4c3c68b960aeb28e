"""What a batch is: the shapes of its tensors, and for each sequence its source documents and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from data.stream.batch import Batch
from data.stream.stream import Stream
from data.stream.tracing import describe

HEAD_CHARACTERS, TAIL_CHARACTERS = 160, 60  # of a document's text


def describe_batch(batches: Sequence[Batch], stream: Stream, *, rows: int) -> dict[str, Any]:
    """Describe one data rank's micro-batches of a step.

    Under `tensors`, by name: dtype, shape, least and largest value of the first micro-batch. Under
    `sequences`, for the first `rows` of them, what `data.stream.tracing.describe` says, with the text of each
    fragment as the batch holds it.
    """
    first = batches[0]
    numbers = [number for batch in batches for number in batch.sequences]
    return {
        "micro_batches": len(batches),
        "first_sequence": numbers[0],
        "last_sequence": numbers[-1],
        "followed_tokens": sum(int((batch.tensors["following"] >= 0).sum()) for batch in batches),
        "tokens": sum(batch.tensors["following"].numel() for batch in batches),
        "tensors": {name: _facts(tensor) for name, tensor in first.tensors.items()},
        "sequences": [_sequence(batches, stream, row) for row in range(min(rows, len(numbers)))],
    }


def _facts(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "least": tensor.min().item(),
        "largest": tensor.max().item(),
    }


def _sequence(batches: Sequence[Batch], stream: Stream, row: int) -> dict[str, Any]:
    batch, place = batches[row // batches[0].rows], row % batches[0].rows
    found = describe(stream, batch.sequences[place])
    ids = batch.tensors["tokens"][place].tolist()
    tokenizer = stream.sources[0].corpus.storage.tokenizer()
    text_of = _decoder(tokenizer)
    for piece in found["pieces"]:
        begin = piece["column"]
        held = ids[begin : begin + len(piece["ids"])]
        piece["in_batch"] = held == piece["ids"][: len(held)]  # False: masked, as its document is damaged
        piece["text"] = text_of(held)
        del piece["ids"]
    return found


def _decoder(tokenizer: bytes) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(tokenizer.decode())
    return lambda ids: made.decode(ids, skip_special_tokens=False)


def lines(found: dict[str, Any], *, step: int, data_ranks: int) -> list[str]:
    """Return the description of a batch as lines."""
    of = f" (data rank 0 of {data_ranks})" if data_ranks > 1 else ""
    told = [
        f"the batch of step {step}: sequences {found['first_sequence']} to {found['last_sequence']}{of} in "
        f"{found['micro_batches']} micro-batches; {found['followed_tokens']:,} of {found['tokens']:,} "
        "tokens have one that follows"
    ]
    for name, facts in found["tensors"].items():
        told.append(f"  {name:<10} {facts['dtype']} {facts['shape']}   {facts['least']} … {facts['largest']}")
    for sequence in found["sequences"]:
        pieces = sequence["pieces"]
        told.append(
            f"sequence {sequence['sequence']}: corpus {sequence['corpus']}, epoch {sequence['epoch']}, "
            f"{len(pieces)} document{'s' * (len(pieces) > 1)}"
        )
        told += [f"  quarantined: {one['shard']} {one['sample']}" for one in sequence["quarantined"]]
        for piece in pieces:
            meta = piece["meta"] or {}
            origin = meta.get("path") or meta.get("source") or "origin unknown"
            told.append(
                f"  {piece['shard']}  {piece['sample']} ({origin}), from token {piece['from_id']:,} of "
                f"{piece['document_ids']:,}, in column {piece['column']}"
                f"{'' if piece['in_batch'] else ': MASKED in the batch'}"
            )
            told.append(f"    {_short(piece['text'])}")
    return told


def _short(text: str) -> str:
    """The text on one line, without its middle."""
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS + 3:
        text = f"{text[:HEAD_CHARACTERS]} … {text[-TAIL_CHARACTERS:]}"
    return repr(text)
