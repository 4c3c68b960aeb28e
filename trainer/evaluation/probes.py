"""Opens the bias probes of a run, on the engine that trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from data.stream.stream import Stream
from data.tokenizer.prompting import Prompting
from parallel.engine import Engine
from parallel.layout.layout import Layout
from trainer.config.run_config import RunConfig
from trainer.evaluation.bias import Bias, BiasProbe, read_pairs
from trainer.evaluation.scoring import Scorer
from trainer.models.config import HITS
from trainer.ranks import Ranks

Probes = Callable[[], dict[str, Bias]]
"""Measures every pair; collective."""


def open_probes(cfg: RunConfig, engine: Engine, layout: Layout, stream: Stream, ranks: Ranks) -> Probes:
    """Return what measures the pairs of `train.eval_bias` with the engine's model. Collective: rank 0 reads
    the files. ValueError where one of them is wrong.
    """
    if not cfg.train.eval_bias:
        return dict
    files = ranks.on_rank_zero(lambda: [read_pairs(path) for path in cfg.train.eval_bias])
    corpora = [source.corpus for source in stream.sources]
    template = all(corpus.manifest.has_template for corpus in corpora)
    tokenizer = Tokenizer.from_str(corpora[0].storage.tokenizer().decode())
    texts = Prompting(tokenizer, stream.eos, template)
    probes = [BiasProbe(Path(path).stem, pairs, texts) for path, pairs in zip(cfg.train.eval_bias, files)]
    return partial(measure_all, probes, make_scorer(cfg, engine, layout))


def measure_all(probes: list[BiasProbe], scorer: Scorer) -> dict[str, Bias]:
    """Return every probe's figures by name. Collective."""
    return {name: bias for probe in probes for name, bias in probe(scorer).items()}


def make_scorer(cfg: RunConfig, engine: Engine, layout: Layout) -> Scorer:
    """Return a scorer with the model of an engine."""
    return Scorer(
        engine,
        layout,
        context=cfg.data.seq_len,
        rows=cfg.train.micro_batch,
        hits=HITS in cfg.model.offers,
    )
