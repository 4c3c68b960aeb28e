"""Fine-tuning against Hugging Face's Trainer and PEFT: same model, weights, rows and hyper-parameters.

`python bench/finetuning/finetune.py`: on a CPU, one thread; some ten minutes where nothing else runs. Three
parts, of which `--only` names one:

* scores: five seeds of each task by both; the score is of held-out rows.
* steps: larger models, in turns of a few steps; a round gives one ratio of neighbours in time. The first
  losses are the same to 1e-5. Reading of rows and the record of a step are part of both.
* memory: bytes of tensors before an update with LoRA, over the closed form: 4 a frozen parameter, 16 a
  trained one.

The tasks: texts of classes by BERT, all weights and LoRA; text of another kind by Llama, LoRA; pictures of
classes by ViT, all weights. BERT and Llama begin from models that are pre-trained here and exported; both
sides load the exported folder. Figures go to bench/results/tasks/finetune.json.
"""

# ruff: noqa: E402

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OWN = ("bench/objectives", "tests/helpers", "tests/helpers/finetuning", "")
sys.path[:0] = [str(ROOT / folder) for folder in OWN]

import bases
import held_memory
import torch
from steps import CHECKED, RESULTS, WARM_UP, again_as_a_rank, check_losses, figures, in_turns, machine

from stock_side import GatedTrainer, score, stock_model, take_drawn, training_rows
from tuned_tasks import Setting, Tuned

SEEDS = range(5)
FILE = RESULTS / "tasks/finetune.json"


def both(setting: Setting, folder: Path, stack: ExitStack) -> tuple[Tuned, GatedTrainer]:
    """Our run and the Trainer's, from the same weights on."""
    tuned = Tuned(setting, folder, stack)
    model = stock_model(setting)
    take_drawn(model, tuned)
    return tuned, GatedTrainer(model, training_rows(tuned.run.cfg), setting)


def scores(home: Path, name: str) -> dict[str, Any]:
    """Train with five seeds; the verdict is whether the means are nearer than the seeds' spread."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in SEEDS:
        setting = replace(bases.small(home, name), seed=seed)
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            tuned, trainer = both(setting, Path(folder), stack)
            for number in range(setting.steps):
                tuned.step(number)
                trainer.step(number)
            trainer.finish()
            found["ours"].append(tuned.score())
            found["theirs"].append(score(trainer.model, tuned))
    means = {side: statistics.mean(values) for side, values in found.items()}
    spread = max(statistics.stdev(values) for values in found.values())
    return {
        "figure": setting.task.figure,
        **{side: [round(value, 4) for value in values] for side, values in found.items()},
        "means": {side: round(value, 4) for side, value in means.items()},
        "spread": round(spread, 4),
        "within": abs(means["ours"] - means["theirs"]) <= spread,
    }


def steps(home: Path, name: str, rounds: int, each: int) -> dict[str, Any]:
    setting = bases.large(home, name, steps=CHECKED + (WARM_UP + rounds) * each)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        tuned, trainer = both(setting, Path(folder), stack)
        contenders: dict[str, Any] = {"ours": tuned, "Trainer": trainer}
        check_losses(contenders)
        found = figures(in_turns(contenders, rounds, each))
        trainer.finish()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=("scores", "steps", "memory"))
    parser.add_argument("--tasks", nargs="+", choices=bases.NAMES, default=bases.NAMES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="steps of a side at a time")
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "germinal-finetune",
                        help="folder of corpora and first models, which are made once")  # fmt: skip
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.in_process:
        again_as_a_rank()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    bases.make(args.home)
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    results |= {"ran": machine(), "about": bases.ABOUT}
    for name in args.tasks:
        if args.only in (None, "scores"):
            results.setdefault("scores", {})[name] = scores(args.home, name)
        if args.only in (None, "steps"):
            results.setdefault("steps", {})[name] = steps(args.home, name, args.rounds, args.steps)
        if args.only in (None, "memory") and name.endswith("LoRA"):
            large = bases.large(args.home, name, steps=2)
            results.setdefault("memory", {})[name] = held_memory.measure(large)
        FILE.write_text(json.dumps(results, indent=1) + "\n")
        for part in ("scores", "steps", "memory"):
            print(name, part, json.dumps(results.get(part, {}).get(name)), flush=True)


if __name__ == "__main__":
    main()
