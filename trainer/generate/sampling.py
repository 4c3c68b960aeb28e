"""Token ids after a prompt, drawn from a model one by one."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trainer.models.layers.attention import KVCache


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    context: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    vocab: int | None = None,
) -> Iterator[int]:
    """Yield the token ids after `prompt`. The same arguments give the same ids.

    Args:
        model: token ids [1, seq] and a `cache` → logits [1, seq, vocab].
        prompt: at least one id.
        max_tokens: the most ids to yield.
        context: tokens that the model sees at once, best as many as it was trained on. When they are full,
            the later half is read anew.
        temperature: 0 takes the likeliest token.
        top_p: draws among the fewest tokens that together have this probability (Holtzman et al. 2020,
            arXiv:1904.09751).
        seed: of the draws.
        stop: this id ends the ids, and is not one of them.
        vocab: ids from here on are never drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    ids = list(prompt)
    unread, cache = ids[-context:], KVCache(context)
    for _ in range(max_tokens):
        if cache.length + len(unread) > context:
            unread, cache = ids[-max(1, context // 2) :], KVCache(context)
        logits = model(torch.tensor([unread], device=device), cache=cache)[0, -1, :vocab]
        chosen = sample(logits.float().cpu(), temperature, top_p, generator)
        if chosen == stop:
            return
        yield chosen
        ids.append(chosen)
        unread = [chosen]


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw one id from logits [vocab], float32 on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(descending=True, stable=True)
    # A token stays while those before it have not reached top_p: so the first one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
