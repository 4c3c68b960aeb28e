"""What tests of data may ask for: a small corpus behind a real HTTP server, a `prepare` without pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.corpus.remote import fetching
from data.prepare.report import datacard
from made_corpus import make_corpus, random_documents
from served import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The corpus that `server` serves."""
    documents = random_documents(60, longest=200)
    return make_corpus(tmp_path / "served" / "corpus", documents, shard_documents=10)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, with readers that pause for milliseconds before they ask again, and that share no indexes
    with other tests.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parents[1]))
    monkeypatch.setenv("TMPDIR", str(folder.parents[1]))  # of a started command
    monkeypatch.setattr(fetching, "FIRST_PAUSE_SECONDS", 0.005)
    server = Server(folder.parent)
    yield server
    server.stop()


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else in a small `prepare`; the pictures have their own test."""
    monkeypatch.setattr(datacard, "_draw", lambda *_: [])
