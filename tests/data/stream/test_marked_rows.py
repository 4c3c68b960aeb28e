"""Rows of ids with a mark for each, as `prepare --task` makes them."""

from pathlib import Path

import numpy as np

from data.config import DataConfig, Heldout
from data.stream.heldout import HeldoutLoader
from made_corpus import EOS, make_corpus
from opened import epoch_of, open_stream


def test_marks_by_hand(tmp_path: Path) -> None:
    """Beside each id its mark: none at separators; the mark of the id that follows where a text is cut."""
    documents = [[1, 2, 3, 7, 0, 9], [4, 5, 6, 10, 11, 12, *[8] * 6], [13, 14]]
    make_corpus(tmp_path, documents, marked=[3, 6, None])
    stream = open_stream(tmp_path, seq_len=5, packing="marked")
    rows = stream.read(range(epoch_of(stream)))
    order = np.argsort(rows.tokens[:, 1])
    assert rows.marks is not None and rows.following_marks is not None and rows.documents is not None
    assert rows.tokens[order].tolist() == [[0, 1, 2, 3, 0], [0, 4, 5, 6, 10]]
    assert rows.marks[order].tolist() == [[0, 7, 0, 9, 0], [0, 8, 8, 8, 8]]
    assert rows.following[order].tolist() == [[1, 2, 3, 0, -1], [4, 5, 6, 10, 11]]
    assert rows.following_marks[order].tolist() == [[7, 0, 9, 0, 0], [8, 8, 8, 8, 8]]
    assert rows.length[order].tolist() == [4, 5]
    assert rows.documents[order].tolist() == [[0, 0, 0, 0, 1], [0] * 5]
    cfg = DataConfig(seq_len=5, packing="marked")
    (batch,) = HeldoutLoader(Heldout(str(tmp_path)), seq_len=5, rank=0, ranks=1, micro_batch=2, cfg=cfg)
    named = vars(rows)
    for name, tensor in batch.tensors.items():
        if name != "label":
            assert tensor.tolist() == named[name][order].tolist(), name
    masked = batch.masked({0}, eos=EOS).tensors
    assert (
        not masked["marks"][0].any() and not masked["following_marks"][0].any() and masked["marks"][1].any()
    )


def test_a_heldout_corpus_with_marks_is_read_as_text_too(tmp_path: Path) -> None:
    """Where a model that predicts next tokens is evaluated on conversations: marks are no ids."""
    make_corpus(tmp_path, [[1, 2, 3, 7, 0, 9], [4, 5, 6, 10, 11, 12, *[8] * 6]], marked=[3, 6])
    (batch,) = HeldoutLoader(Heldout(str(tmp_path)), seq_len=4, rank=0, ranks=1, micro_batch=4)
    assert batch.tensors["tokens"].tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [10, 11, 12, 0], [0] * 4]
    assert batch.tensors["following"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 10], [11, 12, 0, -1], [-1] * 4]
