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

import os
import warnings
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from steps import CLIP, CPU, LR, check_losses, fused_adamw, in_turns, our_engine, report, run
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from data.stream.batch import Batch
from parallel.parameters.initialize import draw
from trainer.models.build import build_model
from trainer.models.encoder.config import EncoderConfig
from trainer.objectives.build import build_objective
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.masked.config import MaskedLMConfig

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


CONTEXT = ObjectiveContext(0, SEQ, TEXT, EOS, bytes, MODEL)


class Ours:
    def __init__(self) -> None:
        self._engine = our_engine(MODEL, OBJECTIVE, CONTEXT, micro_batch=ROWS, global_batch=ROWS)

    def step(self, number: int) -> float:
        x = tokens(number)
        numbers = tuple(range(number * ROWS, (number + 1) * ROWS))
        result = self._engine.step([Batch({"tokens": x, "following": x}, numbers)], lr=LR)
        return result.loss_sum / result.count


class Transformers:
    """The bare loop.

    places: whether the head computes the masked tokens alone.
    our_masks: whether the tokens are masked as ours are, so that losses can be compared.
    """

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
        self._masks, self._objective = _collator(), build_objective(OBJECTIVE, CONTEXT)
        self.our_masks = True
        self._optimizer = fused_adamw(list(self._model.parameters()))

    @torch.no_grad()
    def _copy_weights(self) -> None:
        theirs, plan = dict(self._model.named_parameters()), MODEL.plan()
        for name, parameter in build_model(MODEL).named_parameters():
            # A tied matrix is drawn by the name that the checkpoint has.
            value = draw(name, tuple(parameter.shape), plan, 0, CPU)
            other = _renamed(name)
            theirs["cls.predictions.bias" if other == "cls.predictions.decoder.bias" else other].copy_(value)

    def step(self, number: int) -> float:
        x, labels = self._masked_as_ours(number) if self.our_masks else self._masked(number)
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

    def _masked(self, number: int) -> tuple[Tensor, Tensor]:
        return self._masks.torch_mask_tokens(tokens(number))  # type: ignore[no-any-return]

    def _masked_as_ours(self, number: int) -> tuple[Tensor, Tensor]:
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


def measure(rounds: int, steps: int) -> None:
    warnings.simplefilter("ignore")
    theirs = {
        "transformers": Transformers(places=False),
        "transformers, places alone": Transformers(places=True),
    }
    contenders: dict[str, Any] = {"ours": Ours(), **theirs}
    check_losses(contenders)
    for one in theirs.values():
        one.our_masks = False
    about = {
        "model": f"BERT of {MODEL.layers} layers of {MODEL.hidden}, vocabulary {MODEL.vocab}",
        "step": f"{ROWS} rows of {SEQ} tokens, {OBJECTIVE.mask_rate} predicted, fp32, fused AdamW, clipped",
    }
    report(in_turns(contenders, rounds, steps), about, "mlm.json")


if __name__ == "__main__":
    run(measure, __doc__, rounds=30)
