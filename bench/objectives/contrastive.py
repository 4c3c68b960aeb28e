"""A contrastive step over 32 micro-batches against a hand-written GradCache: same model, weights, batches,
optimiser and clipping, in turns.

`python bench/objectives/contrastive.py`: on a CPU, one thread. The contenders:

* ours: engine and objective, from the stream's tensors to the updated weights.
* GradCache: what a user writes after Gao et al. (2021, arXiv:2101.06983; github.com/luyug/GradCache): forward
  of all micro-batches without gradients, the loss over all embeddings and its gradient with respect to them,
  forward and backward of each micro-batch again. Clipping by torch, fused AdamW.

Their losses over the first steps are equal to 1e-5. A round gives one ratio of neighbours in time; median and
quartiles are printed and go to bench/results/contrastive.json, and so does the processor's time.
"""

from functools import cache
from typing import Any

import torch
from steps import CLIP, CPU, LR, Contender, check_losses, fused_adamw, in_turns, our_engine, report, run
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from parallel.parameters.initialize import draw
from trainer.models.build import build_model
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.contrastive_config import ClipConfig
from trainer.objectives.pairs import text_weights

MODEL = TextPairConfig(
    layers=4,
    hidden=128,
    heads=4,
    vocab=2048,
    norm_place="post",
    activation="gelu",
    biases=True,
    positions="learned",
    max_positions=64,
    window=0,
    embedding=64,
    learnt="scale",
)
TEXT, ROWS, MICRO_BATCHES, POOL = 32, 4, 32, 8  # tokens of a text, rows of a micro-batch, different batches
SEQ, BATCH = 2 * TEXT, ROWS * MICRO_BATCHES


@cache
def pool(number: int) -> list[Batch]:
    """The micro-batches of a step: rows of two texts, as `data.packing=pair` makes them."""
    draws = torch.Generator().manual_seed(number)
    length = torch.randint(TEXT // 2, TEXT + 1, (BATCH, 2), generator=draws)
    place = torch.arange(TEXT).expand(BATCH, 2, TEXT)
    padding = place >= length[..., None]
    tokens = torch.randint(1, MODEL.vocab, (BATCH, 2, TEXT), generator=draws).masked_fill(padding, 0)
    tensors = {
        "tokens": tokens.flatten(1),
        "documents": (padding + 2 * torch.arange(2)[:, None]).flatten(1),
        "positions": torch.where(padding, place - length[..., None], place).flatten(1),
        "length": length,
    }
    parts = {name: tensor.split(ROWS) for name, tensor in tensors.items()}
    return [
        Batch({name: of[i] for name, of in parts.items()}, tuple(range(i * ROWS, (i + 1) * ROWS)))
        for i in range(MICRO_BATCHES)
    ]


class Ours:
    def __init__(self) -> None:
        context = ObjectiveContext(0, SEQ, MODEL.vocab, 0, bytes, MODEL)
        self._engine = our_engine(MODEL, ClipConfig(), context, micro_batch=ROWS, global_batch=BATCH)

    def step(self, number: int) -> float:
        result = self._engine.step(pool(number % POOL), lr=LR)
        return result.loss_sum / result.count


class GradCache:
    def __init__(self) -> None:
        self._model: Any = build_model(MODEL).train()
        plan = MODEL.plan()
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(draw(name, tuple(parameter.shape), plan, 0, CPU))
        self._optimizer = fused_adamw(list(self._model.parameters()))

    def _embed(self, batch: Batch) -> Tensor:
        t = batch.tensors
        weights = text_weights(t["length"], SEQ, MODEL.pool)
        return self._model(t["tokens"], positions=t["positions"], documents=t["documents"], weights=weights)

    def step(self, number: int) -> float:
        given = pool(number % POOL)
        with torch.no_grad():
            cached = torch.cat([self._embed(batch) for batch in given])
        cached.requires_grad_()
        a, b = (F.normalize(side, dim=1) for side in cached[:, :-1].chunk(2, dim=1))
        logits, own = cached[:, -1].mean().exp() * a @ b.T, torch.arange(BATCH)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        loss.backward()
        assert cached.grad is not None
        for batch, gradient in zip(given, cached.grad.split(ROWS)):
            torch.dot(self._embed(batch).flatten(), gradient.flatten()).backward()
        clip_grad_norm_(self._model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


def measure(rounds: int, steps: int) -> None:
    contenders: dict[str, Contender] = {"ours": Ours(), "GradCache": GradCache()}
    check_losses(contenders)
    about = {
        "model": f"encoder of {MODEL.layers} layers of {MODEL.hidden}, embeddings of {MODEL.embedding}",
        "step": f"{MICRO_BATCHES} micro-batches of {ROWS} pairs of {TEXT} tokens each, fp32, fused AdamW, "
        "clipped",
    }
    report(in_turns(contenders, rounds, steps), about, "contrastive.json")


if __name__ == "__main__":
    run(measure, __doc__, rounds=15)
