"""`data inspect`: what a corpus is, and what sequence N is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data.config import DataConfig, Source
from data.corpus.corpus import Corpus, open_corpus
from data.stream.era import Era
from data.stream.order import EraBlocks
from data.stream.packing import counting, joined
from data.stream.packing.held import HELD
from data.stream.packing.kinds import PACKINGS
from data.stream.packing.packing import layout_lengths
from data.stream.stream import Stream
from data.stream.tracing import inspect, sequence
from made_corpus import make_corpus, numbered_documents, random_documents


def test_a_corpus_and_how_it_would_pack(tmp_path: Path) -> None:
    make_corpus(tmp_path / "c" / "train", numbered_documents([15, 31, 0, 40]), shard_documents=2)
    make_corpus(tmp_path / "c" / "heldout", numbered_documents([5]))
    report = inspect(tmp_path / "c", seq_len=16)
    json.dumps(report)
    heldout, train = report["corpora"]
    assert (heldout["documents"], train["documents"], train["tokens"], train["shards"]) == (1, 4, 86, 2)
    assert train["document_tokens"] == {"least": 0, "p10": 0, "median": 31, "p90": 40, "most": 40}
    assert train["packing"]["cut"] == {
        "seq_len": 16,
        "sequences": 6,
        "utilisation": 89 / 96,
        "documents_cut": 0.5,
        "left_out": 0.0,
    }
    assert train["packing"]["one"] == {
        "seq_len": 16,
        "sequences": 3,
        "utilisation": 1.0,
        "documents_cut": 0.5,
        "left_out": 1 - 48 / 89,
    }
    assert "packing" not in inspect(tmp_path / "c" / "train")["corpora"][0]
    with pytest.raises(ValueError, match="no such folder"):
        inspect(tmp_path / "nowhere")
    for most in (1 << 31, (1 << 63) - 1):
        with pytest.raises(ValueError, match=f"^--seq-len {most}: at most 2147483647$"):
            inspect(tmp_path / "c", seq_len=most)


def packed(corpus: Corpus, kind: str, seq_len: int) -> dict[str, float]:
    """The figures of a packing, of each block packed."""
    windows = cut = taken = inputs = 0
    for block in range(len(corpus.block_shard)):
        era = Era(corpus, EraBlocks(0, 0, np.array([block]), np.zeros(0, dtype=np.int64)), kind, seq_len)
        fragments = era.packing.fragments(np.arange(era.packing.windows))
        whole = fragments.length == layout_lengths(era.tokens)[fragments.document]
        cut += len(np.unique(fragments.document[~whole]))
        taken += int(fragments.length.sum())
        windows += era.packing.windows
        inputs += int(layout_lengths(era.tokens).sum())
    return {
        "seq_len": seq_len,
        "sequences": windows,
        "utilisation": taken / (windows * seq_len),
        "documents_cut": cut / corpus.manifest.documents,
        "left_out": 1 - taken / inputs,
    }


def test_the_figures_of_a_packing_are_those_of_packing_every_block(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, random_documents(300, longest=40))
    corpus = open_corpus(str(made), DataConfig())
    assert set(HELD) == {kind for kind, packing in PACKINGS.items() if packing.parts == 1}
    for seq_len in (1, 7, 16, 41, 1000):
        found = inspect(made, seq_len=seq_len)["corpora"][0]["packing"]
        assert found == {kind: packed(corpus, kind, seq_len) for kind in HELD}, seq_len


def test_no_block_is_packed_where_windows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []
    monkeypatch.setattr(counting, "KEPT_DOCUMENTS", 100)
    for name in ("_best_fit", "_best_fit_count"):
        real = getattr(joined, name)
        watched = lambda lengths, seq_len, real=real: blocks.append(1) or real(lengths, seq_len)  # noqa: E731
        monkeypatch.setattr(joined, name, watched)
    made = make_corpus(tmp_path, random_documents(300), block_documents=10)
    reports = []
    for expected in (30, 30):
        reports.append(inspect(made, seq_len=16))
        assert len(blocks) == expected, "each block once, and never again"
    assert reports[0] == reports[1]


def test_a_sequence_is_traced_to_its_documents_and_text(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(200)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0")).to_str().encode()
    make_corpus(tmp_path / "a", numbered_documents([9] * 20), tokenizer=tokenizer, shard_documents=6)
    make_corpus(tmp_path / "b", random_documents(9), tokenizer=tokenizer)
    cfg = DataConfig([Source(str(tmp_path / "a"), name="a"), Source(str(tmp_path / "b"))], seq_len=16)
    rows = Stream.open(cfg, seed=5, global_batch=4).read(range(60))
    for number in range(60):
        found = sequence(cfg, number, seed=5, global_batch=4)
        json.dumps(found)
        ids = [token for token in rows.tokens[number].tolist() if token]
        told = [token for piece in found["pieces"] for token in piece["ids"]]
        assert told[: len(ids)] == ids  # told has the last target besides
        assert len(told) - len(ids) in (0, 1)
        for piece in found["pieces"]:
            assert piece["meta"]["path"] == f"doc/{int(piece['sample'])}"
            if found["source"] == "a" and piece["ids"]:
                assert piece["ids"][0] == 9 * int(piece["sample"]) + 1 + piece["from_id"]
                assert piece["text"] == " ".join(f"w{i}" for i in piece["ids"])
    with pytest.raises(ValueError, match="0 or more, not -1"):
        sequence(cfg, -1, seed=5, global_batch=4)
