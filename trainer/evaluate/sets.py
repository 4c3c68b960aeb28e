"""A trained run on held-out sets: the run's own, or others."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from data.config import Heldout
from data.corpus.corpus import Corpus
from data.stream.heldout import HeldoutLoader
from data.tokenizer.comparison import difference
from trainer.evaluate.calibration import calibrate
from trainer.evaluate.labelled import Outputs, read_set
from trainer.evaluation.answers import open_texts
from trainer.evaluation.evaluate import Evaluator
from trainer.evaluation.heldout import check_something_left, leave_damaged_out, make_loader
from trainer.first_weights.labels import labels_at
from trainer.models.pictures import HasClasses
from trainer.objectives.build import build_objective
from trainer.objectives.picture_config import ClassificationConfig
from trainer.trained.on_ranks import TrainedRun


def sets_of(trained: TrainedRun, given: Mapping[str, str]) -> dict[str, str]:
    """Return name → path of the sets of a run's config, and of those that were `given` beside them."""
    own = {entry.name or entry.path: entry.path for entry in trained.cfg.data.heldout}
    return own | dict(given)


def open_set(trained: TrainedRun, name: str, path: str) -> HeldoutLoader:
    """Open a corpus as a held-out set of the run. Collective.

    ValueError where it is no corpus, or its ids or classes are not the run's; RuntimeError where it is
    damaged. Under data.on_corrupt=quarantine damaged documents are left out, and told on standard error.
    """

    def opened() -> HeldoutLoader:
        heldout = make_loader(Heldout(path=path, name=name), trained.cfg, trained.engine)
        _check_ids(trained, name, heldout.corpus)
        classes = len(heldout.corpus.manifest.classes)
        if wrong := replace(trained.context, classes=classes).wrong_classes(trained.cfg.objective):
            raise ValueError(f"held-out {name}={path}: {wrong}")
        check_names(trained, name, heldout.corpus)
        return heldout

    heldout = trained.ranks.together(opened)
    if trained.cfg.data.on_corrupt == "quarantine":
        for damage in leave_damaged_out(heldout, trained.ranks):
            if trained.ranks.rank == 0:
                print(f"held-out {name}: evaluated without {damage}", file=sys.stderr)
        check_something_left(heldout)
    return heldout


def check_names(trained: TrainedRun, name: str, corpus: Corpus) -> None:
    """ValueError where a number of a corpus's classes or tags is another one of the model's."""
    objective = trained.cfg.objective
    names: Sequence[str] = ()
    if "classes" in objective.needs:
        names = corpus.manifest.classes
    elif objective.kind == "tags":
        names = corpus.manifest.prepare.get("settings", {}).get("tag_name") or ()
    own_names = labels_at(trained.checkpoint or trained.run)
    for number, (own, other) in enumerate(zip(own_names, names, strict=False)):
        if own != other:
            raise ValueError(
                f"held-out {name}={corpus.storage.path}: class {number} is {other!r}, and {own!r} in "
                f"{trained.run}: prepare it in one command with the training corpus (--heldout-match), from "
                "a table that states the classes in the model's order, or tags with --tag-name in that order"
            )


def _check_ids(trained: TrainedRun, name: str, corpus: Corpus) -> None:
    if not trained.cfg.model.vocab:
        return
    if trained.checkpoint is None:
        _check_like_folder(trained, name, corpus)
        return
    entry = corpus.manifest.tokenizer
    if (entry.sha256, entry.eos) != (trained.tokenizer_sha256, trained.texts.separator):
        raise ValueError(
            f"held-out {name}={corpus.storage.path} was prepared with another tokenizer than {trained.run} "
            f"was trained with: prepare it with --tokenizer {trained.run / 'tokenizer.json'}"
        )


def _check_like_folder(trained: TrainedRun, name: str, corpus: Corpus) -> None:
    """ValueError where a corpus's ids are not those of a Hugging Face folder: its tokenizer is the folder's,
    but for the template.
    """
    own, texts = Tokenizer.from_str(corpus.storage.tokenizer().decode()), trained.texts
    remedy = f"prepare it with --tokenizer {trained.run}"
    pairs = ((own, texts.tokenizer), (texts.tokenizer, own))
    if any(difference(one, other, "") for one, other in pairs):
        raise ValueError(
            f"held-out {name}={corpus.storage.path} was prepared with another tokenizer than that of "
            f"{trained.run}: {remedy}"
        )
    if corpus.manifest.tokenizer.eos != texts.separator:
        ours, theirs = (own.id_to_token(one) for one in (corpus.manifest.tokenizer.eos, texts.separator))
        raise ValueError(
            f"held-out {name}={corpus.storage.path} has {ours!r} between documents, where {trained.run} has "
            f"{theirs!r}: {remedy} --separator {theirs!r}"
        )


def perplexity(loss: float) -> float:
    """Return exp of a loss in nats a token; of no target, whose loss is NaN, NaN."""
    return math.inf if loss > 700 else math.exp(loss)


def evaluate_set(trained: TrainedRun, heldout: HeldoutLoader) -> dict[str, Any]:
    """Return the figures of a set by name: those that an evaluation inside the run has, and of text the
    perplexity, of classes the calibration. Collective: every rank has the same.
    """
    cfg = trained.cfg
    evaluator = Evaluator(
        [heldout],
        every=0,
        objective=cfg.objective,
        pp=trained.layout.pp,
        texts=open_texts(cfg, trained.context, trained.engine, trained.layout, trained.ranks),
        ranks=trained.ranks,
    )
    results = evaluator(trained.engine)
    assert results is not None, "nobody asks to stop"
    found: dict[str, Any] = dict(results[heldout.name].record())
    if cfg.objective.scores_text:
        found["perplexity"] = perplexity(found["loss"])
    if isinstance(cfg.objective, ClassificationConfig) and isinstance(cfg.model, HasClasses):
        wanted = Outputs(build_objective(cfg.objective, trained.context), cfg.model.classes)
        logits, labels = read_set(trained, heldout, wanted)
        if len(labels):
            shares = logits.double().softmax(dim=1).numpy()
            found |= calibrate(shares, labels).record()
    return found | {"documents": heldout.documents}
