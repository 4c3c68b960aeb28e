"""One trained run, on everything that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel.world.runtime import Runtime
from trainer.evaluate.choices import Question, answer, read_questions, with_shots
from trainer.evaluate.data import trained_on
from trainer.evaluate.images import classify, read_prompts
from trainer.evaluate.labelled import Outputs
from trainer.evaluate.sets import evaluate_set, open_set, sets_of
from trainer.evaluation.bias import BiasProbe, read_pairs
from trainer.evaluation.probes import make_scorer, measure_all
from trainer.models.config import NEXT_TOKEN
from trainer.models.pairs import LEARNT_COLUMNS
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.objectives.build import build_objective
from trainer.ranks import on_every_rank
from trainer.trained.on_ranks import TrainedRun, open_run


@dataclass(frozen=True)
class Asked:
    """What runs are examined on.

    sets: name → corpus, beside the held-out sets of the run itself.
    choices: name → file of questions.
    shots: solved questions before each.
    shots_from: file of questions to draw them from; empty: the same file.
    seed: of the draws.
    images: name → corpus of labelled pictures.
    prompts: file of captions of the classes.
    bias: name → file of paired sentences.
    tasks: names of lm-evaluation-harness's tasks.
    include: folder with further tasks.
    limit: documents of each task; 0: all.
    """

    sets: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    shots: int = 0
    shots_from: str = ""
    seed: int = 0
    images: Mapping[str, str] = field(default_factory=dict)
    prompts: str = ""
    bias: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    include: str = ""
    limit: int = 0


def examine(
    run: Path, overrides: Sequence[str], runtime: Runtime, asked: Asked, *, step: int | None
) -> dict[str, Any]:
    """Return what a run can do, as plain JSON. Collective: every rank has the same.

    run: the run folder, or a Hugging Face folder.
    overrides: of the layout and of what is read; see `trainer.config.evaluating.load`.
    step: of the checkpoint; None: the newest that verifies.

    ValueError where something was asked for that the run's model does not do, or a file is wrong.
    """
    with ExitStack() as stack:
        trained = open_run(run, overrides, runtime, stack, step=step)
        sets = sets_of(trained, asked.sets)
        found: dict[str, Any] = {
            "run": str(run),
            "step": trained.step,
            "layout": str(trained.layout),
            "precision": trained.cfg.train.precision,
            "objective": trained.cfg.objective.kind,
            "data": trained.ranks.on_rank_zero(lambda: trained_on(trained.cfg)),
            "sets": {},
        }
        for name, path in sets.items():
            found["sets"][name] = evaluate_set(trained, open_set(trained, name, path))
        if asked.choices or asked.bias or asked.tasks:
            found |= _on_text(trained, asked)
        if asked.images:
            found["images"] = _on_images(trained, asked)
        return found


def _on_text(trained: TrainedRun, asked: Asked) -> dict[str, Any]:
    if NEXT_TOKEN not in trained.cfg.model.offers:
        raise on_every_rank(
            ValueError(
                f"{trained.run}: model.kind={trained.cfg.model.kind} predicts no next token, so it gives "
                "texts no likelihood: leave out --choices, --bias and --tasks"
            )
        )
    scorer = make_scorer(trained.cfg, trained.engine, trained.layout)
    on_rank_zero = trained.ranks.on_rank_zero
    found: dict[str, Any] = {}

    def questions(path: str) -> tuple[list[Question], list[str]]:
        every = read_questions(path)
        examples = read_questions(asked.shots_from) if asked.shots_from else every
        return every, with_shots(every, examples, asked.shots, asked.seed)

    if asked.choices:
        found["choices"] = {}
        for name, path in asked.choices.items():
            every, contexts = on_rank_zero(lambda path=path: questions(path))  # type: ignore[misc]
            answered = answer(every, contexts, scorer, trained.texts)
            found["choices"][name] = {"shots": asked.shots, **answered.record()}
    if asked.bias:
        files = on_rank_zero(lambda: {name: read_pairs(path) for name, path in asked.bias.items()})
        probes = [BiasProbe(name, pairs, trained.texts) for name, pairs in files.items()]
        measured = measure_all(probes, scorer)
        found["bias"] = {name: one.record() | one.counts() for name, one in measured.items()}
    if asked.tasks:
        from trainer.evaluate.harness import run_tasks

        found["tasks"] = run_tasks(
            trained,
            asked.tasks,
            include=asked.include,
            shots=asked.shots,
            limit=asked.limit,
            seed=asked.seed,
        )
    return found


def _on_images(trained: TrainedRun, asked: Asked) -> dict[str, Any]:
    model = trained.cfg.model
    if not isinstance(model, ImageTextConfig):
        raise on_every_rank(
            ValueError(
                f"{trained.run}: --images compares pictures with captions, and model.kind={model.kind} has "
                "no two towers for them: model.kind=image_text does"
            )
        )
    columns = 2 * model.embedding + LEARNT_COLUMNS[model.learnt]
    wanted = Outputs(build_objective(trained.cfg.objective, trained.context), columns)
    found = {}
    for name, path in asked.images.items():
        heldout = open_set(trained, name, path)
        classes = heldout.corpus.manifest.classes
        if not classes:
            reason = f"--images {name}={path}: the corpus has no classes: prepare it with labels"
            raise on_every_rank(ValueError(reason))
        captions = trained.ranks.on_rank_zero(lambda classes=classes: read_prompts(asked.prompts, classes))  # type: ignore[misc]
        found[name] = classify(trained, heldout, wanted, captions).record()
    return found
