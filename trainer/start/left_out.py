"""Tells before the first step what documents longer than a row have of marks: nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Iterable

from data.corpus.marked import left_out
from data.stream.heldout import HeldoutLoader
from data.stream.stream import Stream
from trainer.config.run_config import RunConfig
from trainer.ranks import Ranks
from trainer.record.events import CUT, EventLog

_ASKED = {"tags": "tags", "instruction": "tokens of answers", "answers": "answers' ends"}
_FIRST_OF_AN_ANSWER = 2  # see trainer/objectives/marked/answers.py: 1 is a token of the context


def tell_left_out(
    cfg: RunConfig, stream: Stream, heldout: Iterable[HeldoutLoader], ranks: Ranks, events: EventLog
) -> None:
    """Write an event for each corpus that has marks behind the end of its rows. Collective."""
    if cfg.data.packing != "marked" or (kind := cfg.objective.kind) not in _ASKED:
        return
    # A row begins with a separator; the last token's successor is a target too.
    ids = cfg.data.seq_len - (kind != "instruction")
    least = _FIRST_OF_AN_ANSWER if kind == "answers" else 1
    corpora = [(name, source.corpus) for name, source in zip(stream.names, stream.sources)]
    corpora += [(f"held-out {one.name}", one.corpus) for one in heldout]
    for name, corpus in corpora:
        found = ranks.on_rank_zero(lambda corpus=corpus: left_out(corpus, ids, least))  # type: ignore[misc]
        if found.cut:
            windows = f", or prepare it with --window-tokens {cfg.data.seq_len}" * (kind == "answers")
            reason = (
                f"{name}: {found.longer:,} of {found.documents:,} documents are longer than "
                f"data.seq_len={cfg.data.seq_len}, and {found.marks:,} {_ASKED[kind]} of {found.cut:,} of "
                f"them are behind it, where nothing is learnt: raise data.seq_len{windows}"
            )
            events.event(CUT, 0, reason, corpus=name, **vars(found))
