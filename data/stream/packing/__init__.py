"""How documents fill sequences: pure functions of the documents' lengths, block by block.

A document of n ids is laid out as a separator and its ids: n + 1 inputs, whose targets are its ids and, at
the last, the separator that ends it. So every id is a target exactly once, and so is every document's end.
Empty documents take no room. A *window* is `seq_len` inputs, and becomes one sequence. Windows never cross a
block; what is left of a block's windows is padding. A *fragment* is the part of a document that one window
holds.

The ways to pack (`data.packing`) are of two sorts. Where documents are joined, every id is a target:
- cut: documents end to end, cut every seq_len inputs. Only a block's last window has padding.
- best_fit: a document longer than a window is cut into full windows and a rest; rests and short documents go,
  longest first, each into the fullest window that still holds it (best-fit decreasing; Ding et al. 2024,
  arXiv:2404.10830). Few documents are cut; windows may end in padding.

Where each window is of one document alone, for objectives that are about documents, what is longer than its
place is left out:
- one: the document.
- views: two crops of the document, each in a half of the window (contrastive objectives).
- pair: the two texts of the document, each in a half.

    a block of documents A (5 inputs), B (2), C (8), D (3), and seq_len 6 (. is padding)

    cut         AAAAAB  BCCCCC  CCCDDD
    best_fit    CCCCCC  AAAAA.  DDDBB.  CC....
    one         AAAAA.  BB....  CCCCCC  DDD...
    views       AAAAA.  BB.BB.  CCCCCC  DD.DDD

packing.py     what a way to pack is given, and gives
joined.py      cut, best_fit
alone.py       one, views, pair
of_corpus.py   the documents of a corpus as they are packed
counting.py    the windows of each block: looked up, or counted by all ranks together
held.py        how much of the documents is in windows, and how many are cut: for `data inspect`
kinds.py       `data.packing` → its class: begin here
"""
