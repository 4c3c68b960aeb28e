"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on a run folder, in any layout.

Every rank runs the harness and has the same requests; the model's passes are shared out among the ranks, and
their results are the same on all. So the harness itself sees one process.

Texts become ids as they do for its model of transformers: what stands around training documents is put around
a text by the tokenizer's template, if at all; only an empty context begins with a token of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from data.tokenizer import loading
from trainer.evaluation.probes import make_scorer
from trainer.models.config import HITS
from trainer.trained.decoding import widest
from trainer.trained.ends import beginning_of, ends_of
from trainer.trained.on_ranks import TrainedRun
from trainer.trained.sampling import generate_many
from trainer.trained.weights import load_for_decoding, load_model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ValueError(
        f"--tasks needs lm-evaluation-harness ({error}): pip install 'germinal[evaluate]'"
    ) from None

LONGEST = 256  # tokens that a continuation has where the task does not say: the harness's own default


class GerminalLM(TemplateLM):
    """A trained run as the harness's model: log-likelihoods, rolling ones, and continuations.

    trained: the run on these ranks.
    """

    def __init__(self, trained: TrainedRun) -> None:
        super().__init__()
        if HITS not in trained.cfg.model.offers:
            raise ValueError(
                f"{trained.run}: model.kind={trained.cfg.model.kind} does not tell its likeliest tokens, "
                "which lm-evaluation-harness asks for"
            )
        self._trained = trained
        self._scorer = make_scorer(trained.cfg, trained.engine, trained.layout)
        # A copy: in a task's texts, special tokens are special, as transformers has them.
        self._tokenizer = Tokenizer.from_str(trained.texts.tokenizer.to_str())
        self._tokenizer.encode_special_tokens = False
        self._before = loading.whole_template(self._tokenizer)[0]

    @property
    def eot_token_id(self) -> int:
        """The separator."""
        return self._trained.texts.separator

    @cached_property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        trained = self._trained
        return beginning_of(trained.cfg, trained.run, trained.texts, self._before)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self._scorer.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text, behind the template's unless `add_special_tokens` is False."""
        ids = list(self._tokenizer.encode(string, add_special_tokens=False).ids)
        return ids if add_special_tokens is False else [*self._before, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = self._scorer([(before, behind) for _, before, behind in requests])
        return [(score.log_likelihood, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, read in windows that overlap by a token."""
        windows, texts = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [make_disjoint_window(window) for window in cut]
            windows += pairs
            texts += [number] * len(pairs)
        totals = [0.0] * len(requests)
        for number, score in zip(texts, self._scorer(windows), strict=True):
            totals[number] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each context, up to the end of a message, as `germinal generate` ends it, or
        the first of the task's stop words.
        """
        found: dict[int, str] = {}
        order = sorted(range(len(requests)), key=lambda number: json.dumps(requests[number].args[1]))
        rows = self._trained.cfg.train.micro_batch
        for settings, group in groupby(order, key=lambda number: json.dumps(requests[number].args[1])):
            numbers = list(group)
            for first in range(0, len(numbers), rows):
                some = numbers[first : first + rows]
                contexts = [requests[number].args[0] for number in some]
                found |= zip(some, self._continue(contexts, json.loads(settings)))
        return [found[number] for number in range(len(requests))]

    def _continue(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Continue texts as a task's `generation_kwargs` say."""
        trained = self._trained
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, LONGEST))
        most, stops = asked["max_gen_toks"], [stop for stop in asked["until"] if stop]
        if most >= self.max_length:
            raise ValueError(
                f"a task writes {most} tokens, and the model reads {self.max_length} (data.seq_len): set "
                "max_gen_toks in its generation_kwargs"
            )
        room = self.max_length - most

        def stopped(ids: Sequence[int]) -> bool:
            text = self._tokenizer.decode(list(ids))
            return any(stop in text for stop in stops)

        written = dict(
            generate_many(
                self._decoder,
                [self.tok_encode(context)[-room:] or [self.eot_token_id] for context in contexts],
                max_tokens=most,
                context=self.max_length,
                temperature=asked["temperature"],
                top_p=float(asked.get("top_p", 1.0)),
                stop=ends_of(trained.cfg, trained.run, trained.texts),
                vocab=trained.texts.vocab,
                ends=stopped,
            )
        )
        texts = [self._tokenizer.decode(written[number]) for number in range(len(contexts))]
        for stop in stops:
            texts = [text.split(stop)[0] for text in texts]
        return texts

    @cached_property
    def _decoder(self) -> nn.Module:
        """The model once more, cut for decoding over as many of the ranks as it can be."""
        trained = self._trained
        if trained.ranks.world == 1:
            return load_model(trained.cfg, trained.weights)
        layout = widest(trained.cfg, trained.ranks.world)
        return load_for_decoding(trained.cfg, trained.weights, layout, trained.runtime, trained.ranks)


def run_tasks(
    trained: TrainedRun,
    tasks: Sequence[str],
    *,
    include: str = "",
    shots: int = 0,
    limit: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each task by name. Collective: every rank has the same.

    tasks: their names.
    include: folder with further tasks; empty: none.
    shots: solved examples before each document; 0: as the task says.
    limit: documents of each task; 0: all.
    seed: of the draws of examples.

    ValueError where there is no such task, or the harness is not installed.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=include or None)
    for name in tasks:
        if name not in manager.all_tasks:
            raise ValueError(
                f"--tasks {name}: lm-evaluation-harness has no such task; --include: a folder of them"
            )
    # What it and its libraries print is not the report; only rank 0 has a terminal for it anyway.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        loaded = manager.load(list(tasks))
        for task in loaded["tasks"].values():
            given = shots if shots and task.get_config("num_fewshot") != 0 else task.get_config("num_fewshot")
            task.set_config(key="num_fewshot", value=given or 0)
            task.set_fewshot_seed(seed=seed)
        # Not its `simple_evaluate`, which runs pip and git on every rank to describe the machine.
        own = evaluate(GerminalLM(trained), loaded, limit=limit or None, bootstrap_iters=0, log_samples=False)
    found = trained.ranks.tell(own)  # it leaves the figures to the first rank of a machine
    return {
        name: {key.removesuffix(",none"): value for key, value in figures.items() if _is_figure(key, value)}
        for name, figures in found["results"].items()
    }


def _is_figure(key: str, value: Any) -> bool:
    return isinstance(value, int | float) and "stderr" not in key and key != "alias"
