"""What a corpus keeps of questions beside their ids (`prepare --task answers`), so that answers can be told
as texts: a sample's JSON has ANSWERS, CONTEXT_TEXT, PLACES and WINDOW.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from data.corpus import tar
from data.corpus.corpus import Corpus

ANSWERS = "answers"  # the texts of all right answers; none: the context does not answer the question
CONTEXT_TEXT = "context"  # the text of the tokens of the context that are here
PLACES = "places"  # of each of these tokens, its first character in that text and the one behind it, in turn
WINDOW = "window"  # 0 for a question's first document, 1 for the next part of its context, …


@dataclass(frozen=True)
class Question:
    """What a document says of its question; see above.

    places: (first character, the one behind the last) of each token of the context.
    """

    answers: list[str]
    context: str
    places: list[tuple[int, int]]
    window: int

    def text(self, first: int, last: int) -> str:
        """The text of the tokens `first` … `last` of the context, without white space around it."""
        return self.context[self.places[first][0] : self.places[last][1]].strip()


def questions(corpus: Corpus, documents: int) -> Iterator[Question]:
    """Yield what the first `documents` documents of a corpus say, in order.

    ValueError, one line, where a document is of another task.
    """
    left = documents
    for shard in range(len(corpus.manifest.shards)):
        if not left:
            return
        view, where = corpus.storage.open(shard).view, corpus.shard_path(shard)
        for sample in tar.samples(view, where):
            if not left:
                return
            left -= 1
            member = sample.members["json"]
            about = json.loads(bytes(view[member.offset : member.offset + member.size]))
            if PLACES not in about:
                raise ValueError(
                    f"{where}: sample {sample.key!r} does not say the texts of its answers: prepare the "
                    "corpus (again) with --task answers"
                )
            ends = about[PLACES]
            yield Question(
                about[ANSWERS], about[CONTEXT_TEXT], list(zip(ends[::2], ends[1::2])), about[WINDOW]
            )
