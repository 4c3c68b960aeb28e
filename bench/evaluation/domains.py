"""Domain mismatch: a model of Python's code goes on with English prose. What does it gain there, what does it
lose at home, and how much less does it lose where a tenth of what it reads is still code?

`python bench/evaluation/domains.py`: for each seed a run on the first domain (functions of the standard
library, `embedded:python`); from its checkpoint (`model.init_from`) one on the second domain alone (the
topics of Python's `help()`, its reference manual), and one on 90 % of the second and 10 % of the first.
`germinal evaluate` measures all three on held-out documents of both. Prints the table, with the mean over the
seeds and the least and the most, and writes bench/results/tasks/domains.json.

The tokenizer is the first domain's, as it is where somebody goes on with a published model: it was trained on
code alone, and cuts prose into shorter tokens. Bits per byte count what all tokens of a text cost, so they
compare between the domains; a loss per token would not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from data.prepare.prepare import prepare
from parallel.world import runtime as runtimes
from trainer.config import reading
from trainer.evaluate.examination import Asked, examine
from trainer.run import assemble

RESULTS = Path(__file__).parents[1] / "results" / "tasks" / "domains.json"
FIRST, SECOND = "first", "second"
BEFORE, ALONE, REPLAY = "first alone", "then second", "then second, 10 % first"
REPLAYED = 0.1
HELDOUT = 0.1
Figures = dict[str, dict[str, float]]
"""Run → held-out set → bits per byte."""


@dataclass(frozen=True)
class Sizes:
    """How large the experiment is.

    vocab, layers, hidden: of the model.
    seq_len, rows: tokens of a sequence, sequences of a step.
    first_steps, second_steps: of the first run, and of each that goes on.
    documents: of each held-out set; 0: all.
    """

    vocab: int = 512
    layers: int = 2
    hidden: int = 64
    seq_len: int = 128
    rows: int = 8
    first_steps: int = 400
    second_steps: int = 150
    documents: int = 200


def prepare_both(first: Sequence[str], second: Sequence[str], out: Path, vocab: int) -> None:
    """Make both corpora in out/first and out/second, with the tokenizer of the first."""
    common: dict[str, Any] = {"heldout": HELDOUT, "workers": 1, "progress": False}
    prepare(list(first), out / FIRST, train_tokenizer=vocab, **common)
    prepare(list(second), out / SECOND, tokenizer=out / FIRST / "train" / "tokenizer.json", **common)


def write_manual(file: Path) -> None:
    """Write the texts of `help()`'s topics as rows of JSON, each cut at blank lines into about 1,000
    characters.
    """
    from pydoc_data.topics import topics

    rows = (part for text in topics.values() for part in _parts(text))
    file.write_text("".join(json.dumps({"text": part}) + "\n" for part in rows))


def _parts(text: str) -> Iterator[str]:
    so_far = ""
    for paragraph in text.split("\n\n"):
        so_far += paragraph + "\n\n"
        if len(so_far) >= 1000:
            yield so_far
            so_far = ""
    if so_far.strip():
        yield so_far


def measure(corpora: Path, folder: Path, sizes: Sizes, seed: int) -> Figures:
    """Train the three runs of a seed, and evaluate them on both held-out sets."""
    weights = {
        BEFORE: {FIRST: 1.0},
        ALONE: {SECOND: 1.0},
        REPLAY: {SECOND: 1.0 - REPLAYED, FIRST: REPLAYED},
    }
    found: Figures = {}
    for number, (name, mixture) in enumerate(weights.items()):
        begins_from = folder / f"run-0-{seed}" if number else None
        run = folder / f"run-{number}-{seed}"
        _train(_config(corpora, run, sizes, seed, mixture, begins_from))
        sets = {side: str(corpora / side / "heldout") for side in (FIRST, SECOND)}
        runtime = runtimes.start(env=_environment())
        figures = examine(run, ["train.micro_batch=32"], runtime, Asked(sets=sets), step=None)["sets"]
        found[name] = {side: figures[side]["bits_per_byte"] for side in sets}
    return found


def _config(
    corpora: Path,
    run: Path,
    sizes: Sizes,
    seed: int,
    mixture: Mapping[str, float],
    begins_from: Path | None,
) -> Path:
    """Write the config of a run; the model's keys are those of the run that it begins from."""
    model = {
        "kind": "decoder",
        "layers": sizes.layers,
        "hidden": sizes.hidden,
        "heads": sizes.hidden // 32,
        "vocab": sizes.vocab,
        "tie_embeddings": True,
        "qk_norm": True,
    }
    steps = sizes.second_steps if begins_from else sizes.first_steps
    config = {
        "name": run.name,
        "run_dir": str(run),
        "seed": seed,
        "model": {"init_from": str(begins_from)} if begins_from else model,
        "data": {
            "sources": [
                {"path": str(corpora / side / "train"), "name": side, "weight": weight}
                for side, weight in mixture.items()
            ],
            "seq_len": sizes.seq_len,
        },
        "optim": {"name": "muon", "lr": 4.0e-3, "schedule": "wsd", "warmup_steps": max(1, steps // 20)}
        | {"decay_fraction": 0.5, "weight_decay": 0.1, "clip": 1.0},
        "train": {
            "steps": steps,
            "global_batch": sizes.rows,
            "micro_batch": sizes.rows,
            "precision": "fp32",
            "eval_documents": sizes.documents,
        },
        "checkpoint": {"every": steps, "keep": 1},
    }
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    return file


def _train(config: Path) -> None:
    with ExitStack() as stack:
        if not assemble(reading.load(config), runtimes.start(env=_environment()), stack)():
            raise RuntimeError(f"{config}: was stopped")


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def summary(found: Sequence[Figures]) -> dict[str, Any]:
    """Return, of all seeds, [mean, least, most] of each figure, and of what each run that went on has changed
    against the first run of its seed.
    """

    def spread(values: Sequence[float]) -> list[float]:
        return [round(value, 4) for value in (mean(values), min(values), max(values))]

    return {
        "bits_per_byte": {
            run: {side: spread([one[run][side] for one in found]) for side in (FIRST, SECOND)}
            for run in (BEFORE, ALONE, REPLAY)
        },
        "change": {
            run: {
                side: spread([one[run][side] - one[BEFORE][side] for one in found])
                for side in (FIRST, SECOND)
            }
            for run in (ALONE, REPLAY)
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a summary as Markdown."""
    lines = ["| trained on | code, bits per byte | prose, bits per byte | code: change | prose: change |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for run, figures in result["bits_per_byte"].items():
        cells = [_cell(figures[side], "") for side in (FIRST, SECOND)]
        changes = result["change"].get(run)
        cells += [_cell(changes[side], "+") for side in (FIRST, SECOND)] if changes else ["", ""]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(spread: Sequence[float], sign: str) -> str:
    middle, least, most = (f"{value:{sign}.3f}" for value in spread)
    return f"{middle} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep corpora and runs there (default: a temporary one)")
    args = parser.parse_args()
    sizes = Sizes()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_manual(folder / "manual.jsonl")
        prepare_both(["embedded:python"], [str(folder / "manual.jsonl")], folder / "corpora", sizes.vocab)
        found = [measure(folder / "corpora", folder, sizes, seed) for seed in range(args.seeds)]
    result = {
        "python": platform.python_version(),
        "sizes": asdict(sizes),
        "replayed": REPLAYED,
        "seeds": args.seeds,
        **summary(found),
        "each_seed": found,
    }
    print(table(result))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
