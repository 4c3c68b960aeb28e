"""A step of masked language modelling against loops over Hugging Face's BERT: same model, weights, batches,
optimiser and clipping, in turns.

`python bench/objectives/mlm.py`: on a CPU, one thread. The contenders:

* ours: engine and objective, from the stream's tokens to the updated weights.
* transformers: `BertForMaskedLM` and masks by `DataCollatorForLanguageModeling`, as in its examples: the head
  computes logits at every token.
* transformers, places alone: the same with a line that most do not write: the head computes the masked tokens
  only.

Nothing drops out in any of them. For a few steps all get our masks: their losses are ours to 1e-5. A round
gives one ratio of neighbours in time; median and quartiles are printed and go to bench/results/mlm.json.
So does the processor's time: with one thread, the better measure on a machine that others use too.
The vocabulary is as small beside the blocks as that of BERT base: the head is a fifth of the operations.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from launch.local.rank_commands import KEEP_MEMORY
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.parameters.initialize import draw
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.encoder.config import EncoderConfig
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.optim.build import build_optimizer

RESULTS = Path(__file__).parents[1] / "results" / "mlm.json"
TEXT, MASK, EOS = 3000, 3000, 0  # ids of the text; the mask is the next
MODEL = EncoderConfig(
    layers=4,
    hidden=256,
    heads=4,
    vocab=3008,
    norm_place="post",
    activation="gelu",
    biases=True,
    positions="learned",
    max_positions=128,
    token_types=2,
    norm_eps=1e-12,
    window=0,
)
OBJECTIVE = MaskedLMConfig()
SEQ, ROWS, POOL = 128, 8, 32  # tokens of a row, rows of a step, different batches
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
CPU = torch.device("cpu")
CHECKED, WARM_UP, TOLERANCE = 3, 2, 1e-5

NAMES = {
    "embed": "bert.embeddings.word_embeddings",
    "position_embed": "bert.embeddings.position_embeddings",
    "type_embed": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "layers": "bert.encoder.layer",
    "attention.wq": "attention.self.query",
    "attention.wk": "attention.self.key",
    "attention.wv": "attention.self.value",
    "attention.wo": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.w1": "intermediate.dense",
    "mlp.w2": "output.dense",
    "mlp_norm": "output.LayerNorm",
    "head.transform.dense": "cls.predictions.transform.dense",
    "head.transform.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
}
"""Our names of modules → those of `BertForMaskedLM`."""


def tokens(number: int) -> Tensor:
    """The rows of a step, [ROWS, SEQ]: full ones, as packing makes nearly all of them."""
    draws = torch.Generator().manual_seed(number % POOL)
    return torch.randint(1, TEXT, (ROWS, SEQ), generator=draws)


def objective() -> Any:
    return build_objective(OBJECTIVE, ObjectiveContext(0, SEQ, TEXT, EOS, lambda: b"", MODEL))


class Ours:
    def __init__(self) -> None:
        cfg, plan = ParallelConfig(), MODEL.plan()
        optim = OptimConfig(lr=LR, betas=list(BETAS), weight_decay=DECAY)
        self._engine = build_engine(
            layout=resolve(cfg, 1),
            cfg=cfg,
            runtime=Runtime(0, 1, 0, CPU),
            plan=plan,
            model_factory=lambda: build_model(MODEL),
            objective=objective(),
            optimizer_factory=lambda parameters: build_optimizer(parameters, optim, plan),
            precision="fp32",
            clip=CLIP,
            seed=0,
            micro_batch=ROWS,
            global_batch=ROWS,
            positions=SEQ,
            nominal_count=int(ROWS * OBJECTIVE.targets_per_row(SEQ)),
        )

    def step(self, number: int, check: bool = False) -> float:
        x = tokens(number)
        numbers = tuple(range(number * ROWS, (number + 1) * ROWS))
        result = self._engine.step([Batch({"tokens": x, "following": x}, numbers)], lr=LR)
        return result.loss_sum / result.count


class Transformers:
    """The bare loop. places: whether the head computes the masked tokens alone."""

    def __init__(self, *, places: bool) -> None:
        from transformers import BertConfig, BertForMaskedLM

        cfg = BertConfig(
            vocab_size=MODEL.vocab,
            hidden_size=MODEL.hidden,
            num_hidden_layers=MODEL.layers,
            num_attention_heads=MODEL.heads,
            intermediate_size=MODEL.ffn_width,
            max_position_embeddings=MODEL.max_positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self._places, self._model = places, BertForMaskedLM(cfg).train()
        self._copy_weights()
        self._masks, self._objective = _collator(), objective()
        groups = [
            {"params": [p for p in self._model.parameters() if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in self._model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    @torch.no_grad()
    def _copy_weights(self) -> None:
        theirs, plan = dict(self._model.named_parameters()), MODEL.plan()
        for name, parameter in build_model(MODEL).named_parameters():
            # A tied matrix is drawn by the name that the checkpoint has.
            value = draw(name, tuple(parameter.shape), plan, 0, CPU)
            other = _renamed(name)
            theirs["cls.predictions.bias" if other == "cls.predictions.decoder.bias" else other].copy_(value)

    def step(self, number: int, check: bool = False) -> float:
        x, labels = self._checked(number) if check else self._masks.torch_mask_tokens(tokens(number))
        if self._places:
            model: Any = self._model
            hidden = model.bert(input_ids=x).last_hidden_state
            here = labels != -100
            loss = F.cross_entropy(model.cls(hidden[here]), labels[here])
        else:
            loss = self._model(input_ids=x, labels=labels).loss
        loss.backward()
        clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _checked(self, number: int) -> tuple[Tensor, Tensor]:
        """The rows with our masks."""
        x = tokens(number)
        numbers = tuple(range(number * ROWS, (number + 1) * ROWS))
        inputs = self._objective.inputs({"tokens": x, "following": x}, numbers)
        places, targets = inputs.kwargs["places"], inputs.kwargs["targets"]
        labels = torch.full((ROWS, SEQ + 1), -100).scatter(1, places.masked_fill(places < 0, SEQ), targets)
        return inputs.x, labels[:, :SEQ].contiguous()


def _renamed(name: str) -> str:
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        if (own := ".".join(parts[:size])) in NAMES:
            return f"{NAMES[own]}.{_inside(parts[size:])}"
    raise AssertionError(name)


def _inside(parts: list[str]) -> str:
    """A block's number, a module of the block and its parameter; or a parameter alone."""
    if len(parts) == 1:
        return parts[0]
    return f"{parts[0]}.{NAMES['.'.join(parts[1:-1])]}.{parts[-1]}"


def _collator() -> Any:
    """Masks as `transformers` draws them, of rows that are tensors already."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(TEXT)} | {"[MASK]": MASK, "[PAD]": MASK + 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        mask_token="[MASK]",
        pad_token="[PAD]",
    )
    made = DataCollatorForLanguageModeling(tokenizer, mlm_probability=OBJECTIVE.mask_rate)
    nothing = torch.zeros(ROWS, SEQ, dtype=torch.bool)

    class Masks:
        def torch_mask_tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            return made.torch_mask_tokens(rows, special_tokens_mask=nothing)

    return Masks()


def measure(rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step in each round, by clock and contender."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    contenders: dict[str, Any] = {
        "ours": Ours(),
        "transformers": Transformers(places=False),
        "transformers, places alone": Transformers(places=True),
    }
    losses = {name: [one.step(n, check=True) for n in range(CHECKED)] for name, one in contenders.items()}
    for name, found in losses.items():
        off = max(abs(a / b - 1) for a, b in zip(found, losses["ours"], strict=True))
        assert off < TOLERANCE, f"{name} is off by {off:.1e}: {found}, ours {losses['ours']}"
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {n: [] for n in contenders} for clock in clocks}
    order, number = list(contenders), CHECKED
    for turn in range(WARM_UP + rounds):
        order.reverse()
        for name in order:
            begin = {clock: now() for clock, now in clocks.items()}
            for step in range(steps):
                contenders[name].step(number + step)
            if turn >= WARM_UP:
                for clock, now in clocks.items():
                    seconds[clock][name].append((now() - begin[clock]) / steps)
        number += steps
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2, help="steps of a contender at a time")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.in_process:  # memory is kept alike for all: the process begins with these variables
        command = [sys.executable, *sys.argv, "--in-process"]
        sys.exit(subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=False).returncode)
    seconds = measure(args.rounds, args.steps)
    ratios = {}
    for clock, of_clock in seconds.items():
        for other in list(of_clock)[1:]:
            pairs = [mine / theirs for mine, theirs in zip(of_clock["ours"], of_clock[other], strict=True)]
            low, middle, high = (round(q, 4) for q in statistics.quantiles(pairs, n=4))
            ratios[f"ours / {other}, {clock} time"] = [middle, low, high]
    result = {
        "ran": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}",
        "model": f"BERT of {MODEL.layers} layers of {MODEL.hidden}, vocabulary {MODEL.vocab}",
        "step": f"{ROWS} rows of {SEQ} tokens, {OBJECTIVE.mask_rate} predicted, fp32, fused AdamW, clipped",
        "rounds": args.rounds,
        "step_ms": {
            clock: {name: round(1e3 * statistics.median(values), 1) for name, values in found.items()}
            for clock, found in seconds.items()
        },
        "load": os.getloadavg()[1],
        "ratios": ratios,
        "order": "median, lower and upper quartile of one ratio a round",
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
