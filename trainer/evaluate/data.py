"""What a run was trained on, as its corpora say: what a report of its biases has to be read beside."""

from __future__ import annotations

import contextlib
from typing import Any

from data.corpus.corpus import open_storage
from trainer.config.run_config import RunConfig

MOST = 5  # sources, licences and languages of a corpus that are listed


def trained_on(cfg: RunConfig) -> list[dict[str, Any]]:
    """Return of each source its name, path and what its data card has: documents, tokens, bytes of text and
    the largest of its sources, licences and languages by bytes of text. Of a corpus that is not there any
    more only name and path.
    """
    found = []
    for source in cfg.data.sources:
        entry: dict[str, Any] = {"name": source.name or source.path, "path": source.path}
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            manifest = open_storage(source.path, cfg.data.cache_dir, cfg.data.cache_bytes).manifest()
            entry |= {
                "documents": manifest.documents,
                "tokens": manifest.tokens,
                "text_bytes": manifest.text_bytes,
                "fingerprint": manifest.fingerprint,
            }
            profile = manifest.prepare.get("profile", {})
            for kind in ("source", "licence", "language"):
                counts = {name: numbers[1] for name, numbers in profile.get(kind, {}).items()}
                largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST]
                entry[kind] = dict(largest)
        found.append(entry)
    return found
