"""A damaged catalogue or a damaged table of windows: told once, by one process, and made anew where it may be
written.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Heldout, Source
from data.corpus.corpus import open_corpus
from data.corpus.listing import tables
from data.corpus.listing.catalogue import close_corpus
from data.corpus.manifest import read_manifest
from data.stream.heldout import HeldoutLoader
from data.stream.packing.counting import Counting, counted_alone
from data.stream.stream import Stream
from made_corpus import make_corpus, random_documents
from ranks import RankContext, RankPools
from trainer.config.run_config import RunConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.ranks import Ranks
from trainer.start.opening import open_stream


def small_corpus(folder: Path) -> tuple[Path, Path]:
    """A corpus, and its catalogue."""
    corpus = make_corpus(folder, random_documents(100), shard_documents=20)
    close_corpus(corpus, read_manifest(corpus))
    (catalogue,) = corpus.glob("catalogue-*")
    return corpus, catalogue


def damage(file: Path) -> bytes:
    """Flip a bit of the last byte; return the content as it was."""
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    return raw


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
def test_a_damaged_catalogue_of_a_small_corpus_is_told_once_and_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: str
) -> None:
    corpus, catalogue = small_corpus(tmp_path / "corpus")
    cfg = DataConfig([Source(str(corpus))], seq_len=32, packing=packing)
    true = Stream.open(cfg, seed=0, global_batch=4).sequences_per_epoch
    raw = damage(catalogue)
    said = []
    for _ in range(2):
        assert Stream.open(cfg, seed=0, global_batch=4).sequences_per_epoch == true
        said.append(capsys.readouterr().err.splitlines())
    assert [len(lines) for lines in said] == [1, 0] and f"{catalogue} is damaged (" in said[0][0]
    assert catalogue.read_bytes() == raw
    assert not list(corpus.glob("windows-*")), "of a small corpus windows are not kept"


def test_where_the_corpus_cannot_be_written_each_start_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, catalogue = small_corpus(tmp_path / "corpus")
    spare = tmp_path / "spare"
    write = tables.write_atomically

    def refused(path: Path, *more: Any, **others: Any) -> None:
        if path.parent == corpus:
            raise PermissionError(path)
        write(path, *more, **others)

    monkeypatch.setattr(tables, "write_atomically", refused)
    raw = damage(catalogue)
    for _ in range(3):
        counted_alone(Counting(open_corpus(str(corpus), DataConfig(), [spare]), "cut", 32))
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{catalogue} is damaged (" in line
    assert (spare / catalogue.name).read_bytes() == raw


def test_that_of_a_held_out_corpus_is_told_and_made_anew_by_one_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, catalogue = small_corpus(tmp_path / "corpus")
    raw = damage(catalogue)
    for rank, told in ((1, 0), (0, 1), (0, 0)):
        HeldoutLoader(Heldout(str(corpus)), seq_len=8, rank=rank, ranks=2, micro_batch=2)
        assert capsys.readouterr().err.count("is damaged") == told
        assert (catalogue.read_bytes() == raw) == (rank == 0)


def start(context: RankContext, corpora: list[str], run: str) -> tuple[int, str]:
    """Open the stream of a run, whose corpus may lie on a disk of the rank's own; the sequences, what was
    said.
    """
    data = DataConfig([Source(corpora[context.rank % len(corpora)], name="one")], seq_len=32)
    cfg = RunConfig("run", DecoderConfig(vocab=50_000), run_dir=run, data=data)
    with redirect_stderr(io.StringIO()) as said:
        stream = open_stream(cfg, Ranks(context.rank, context.world))
    return sum(stream.sequences_per_epoch.values()), said.getvalue()


def test_of_many_ranks_one_says_it(tmp_path: Path, ranks: RankPools) -> None:
    corpus, catalogue = small_corpus(tmp_path / "corpus")
    raw = damage(catalogue)
    for told in (1, 0):
        found = ranks(4).run(start, [str(corpus)], str(tmp_path / "run"))
        assert [said.count("is damaged") for _, said in found] == [told, 0, 0, 0]
        assert catalogue.read_bytes() == raw


def test_a_corpus_whose_catalogue_only_some_nodes_have_whole_is_counted_whole(
    tmp_path: Path, ranks: RankPools
) -> None:
    """Rank 0 is not of those that see the damage, and says it."""
    (one, _), (other, catalogue) = (small_corpus(tmp_path / node) for node in ("one", "other"))
    expected = counted_alone(Counting(open_corpus(str(one), DataConfig()), "cut", 32))
    damage(catalogue)
    found = ranks(4).run(start, [str(one), str(other)], str(tmp_path / "run"))
    assert [sequences for sequences, _ in found] == [int(np.sum(expected))] * 4
    assert [said.count(f"{catalogue} is damaged") for _, said in found] == [1, 0, 0, 0]
    assert (tmp_path / "run/counts" / catalogue.name).is_file(), "for the node whose own is damaged"
