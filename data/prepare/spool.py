"""Spools: the cleaned documents of a unit between the two passes, as one compressed Arrow stream."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from data.prepare.document import Document, marks_from

_SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("second", pa.large_string()),
        ("marks", pa.string()),
        ("origin", pa.string()),
        ("ids", pa.large_binary()),
        ("media", pa.map_(pa.string(), pa.large_binary())),
    ]
)
_BATCH_BYTES = 4 << 20


class SpoolWriter:
    """Write documents to `path` in batches of bounded size, so that memory does not grow with the unit."""

    def __init__(self, path: Path) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._stream = pa.ipc.new_stream(str(path), _SCHEMA, options=options)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> "SpoolWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._stream.close()

    def add(self, document: Document) -> None:
        """Append one document."""
        ids = document.ids.astype("<i8").tobytes() if document.ids is not None else None
        media = sorted(document.media.items())
        texts = {"text": document.text, "second": document.second}
        marks = json.dumps(asdict(document.marks)) if document.marks is not None else None
        texts |= {"marks": marks}
        self._rows.append({**texts, "origin": json.dumps(document.origin), "ids": ids, "media": media})
        self._bytes += sum(len(value or "") for value in (*texts.values(), ids))
        self._bytes += sum(len(value) for _, value in media)
        if self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=_SCHEMA))
        self._rows, self._bytes = [], 0


def read(path: Path) -> Iterator[Document]:
    """Yield the documents of a spool in order."""
    with pa.ipc.open_stream(str(path)) as stream:
        for batch in stream:
            for row in batch.to_pylist():
                ids = np.frombuffer(row["ids"], "<i8") if row["ids"] is not None else None
                origin = json.loads(row["origin"])
                marks = marks_from(json.loads(row["marks"])) if row["marks"] else None
                yield Document(row["text"], origin, ids, dict(row["media"]), row["second"], marks)
