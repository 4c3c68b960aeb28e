"""Opens the held-out sets of a run, and leaves their damaged documents out."""

from data.config import Heldout
from data.corpus.corpus import DamagedDocument, check_classes, check_tokenizers
from data.stream.heldout import HeldoutLoader
from data.stream.stream import Stream
from parallel.engine import Engine
from trainer.config.run_config import RunConfig
from trainer.ranks import Ranks, on_every_rank
from trainer.record.events import EventLog


def open_heldout(
    cfg: RunConfig,
    engine: Engine,
    stream: Stream,
    *,
    step: int,
    events: EventLog,
    ranks: Ranks,
) -> list[HeldoutLoader]:
    """Open every held-out set of the config, for this data rank. Collective. ValueError where one was made
    with another tokenizer than the training `stream`, or has other classes: its ids would be read as other
    words, its labels as other classes. A set that is also trained on is an event at `step`: that may be
    intended.

    Under data.on_corrupt=quarantine a damaged document is left out, of the loss and of the bytes that it is
    divided by, on every rank alike, and is an event at `step`.
    """

    def open_sets() -> list[HeldoutLoader]:
        sets = [make_loader(entry, cfg, engine) for entry in cfg.data.heldout]
        for number, heldout in enumerate(sets):
            key = f"data.heldout[{number}].path"
            check_tokenizers(key, heldout.corpus, stream.sources[0].corpus)
            for source in stream.sources:
                check_classes(key, heldout.corpus, source.corpus)
        return sets

    sets = ranks.together(open_sets)
    trained_on = {
        source.corpus.manifest.fingerprint: name for name, source in zip(stream.names, stream.sources)
    }
    for heldout in sets:
        if (source := trained_on.get(heldout.corpus.manifest.fingerprint)) is not None:
            reason = (
                f"held-out {heldout.name} is the corpus of the source {source}: the model is trained on it"
            )
            events.event("heldout", step, reason)
    if cfg.data.on_corrupt == "quarantine":
        for heldout in sets:
            for damage in leave_damaged_out(heldout, ranks):
                reason = (
                    f"shard {damage.shard}: sample {damage.sample!r}, byte {damage.offset}: damaged; "
                    f"held-out {heldout.name} is evaluated without it"
                )
                events.event("quarantine", step, reason, heldout=heldout.name, **vars(damage))
            check_something_left(heldout)
    return sets


def make_loader(entry: Heldout, cfg: RunConfig, engine: Engine) -> HeldoutLoader:
    """Open one held-out set for the engine's data rank, as the config says that it is read."""
    return HeldoutLoader(
        entry,
        seq_len=cfg.data.seq_len,
        rank=engine.data_rank,
        ranks=engine.data_ranks,
        micro_batch=cfg.train.micro_batch,
        overlap=cfg.train.eval_overlap,
        max_documents=cfg.train.eval_documents,
        cfg=cfg.data,
    )


def leave_damaged_out(heldout: HeldoutLoader, ranks: Ranks) -> list[DamagedDocument]:
    """Leave the damaged documents of a set out, and return them. Collective."""
    # A node may have a copy of its own: a document that one rank cannot read is counted on none.
    own = heldout.damaged()
    everyones = ranks.gather(own) if ranks.any(bool(own)) else []
    everywhere = {number: damage for found in everyones for number, damage in found}
    heldout.leave_out(sorted(everywhere))
    return [damage for _, damage in sorted(everywhere.items())]


def check_something_left(heldout: HeldoutLoader) -> None:
    """RuntimeError, on every rank, where every document of a set was damaged."""
    if not heldout.rows:
        raise on_every_rank(
            RuntimeError(f"held-out {heldout.name}: every document is damaged: restore the corpus")
        )
