"""Token ids after a prompt, or after many, drawn from a model one by one."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

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
    stop: Collection[int] = (),
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
        stop: each of these ids ends the ids, and is not one of them.
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
        if chosen in stop:
            return
        yield chosen
        ids.append(chosen)
        unread = [chosen]


@dataclass
class _Row:
    """A text that is being written.

    number: of its prompt.
    ids: those of the prompt, and those that were drawn.
    prompt: how many are the prompt's.
    read: how many of the last ones the model sees, once it has read all.
    generator: of the draws.
    """

    number: int
    ids: list[int]
    prompt: int
    read: int
    generator: torch.Generator

    @property
    def written(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[self.prompt :]


@torch.inference_mode()
def generate_many(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    context: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
    vocab: int | None = None,
    ends: Callable[[Sequence[int]], bool] = lambda ids: False,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (number of the prompt, the ids after it) as soon as these have ended: what `generate` gives for
    each of them alone, where roundings decide nothing. The rows are one batch, shorter ones behind padding.

    model: as of `generate`, with a `padding` [batch] besides; see `Decoder.forward`.
    prompts: each of at least one id.
    ends: told the ids after a prompt so far; whether they are enough.

    The other arguments are those of `generate`, for each row anew.
    """
    device = next(model.parameters()).device
    going = [
        _Row(number, list(ids), len(ids), min(len(ids), context), torch.Generator().manual_seed(seed))
        for number, ids in enumerate(prompts)
    ]
    unread = True
    cache, padding = KVCache(context), torch.zeros(0, dtype=torch.int64)
    for _ in range(max_tokens):
        if not going:
            break
        if unread:  # at the beginning, and where a row, or one that has ended, has filled the context
            longest = max(row.read for row in going)
            cache, padding = KVCache(context), torch.tensor([longest - row.read for row in going])
            tokens = torch.tensor([[0] * (longest - row.read) + row.ids[-row.read :] for row in going])
        else:
            tokens = torch.tensor([row.ids[-1:] for row in going])
        places = torch.full((len(going), 1), tokens.shape[1] - 1, device=device)
        logits = model(
            tokens.to(device),
            cache=cache,
            places=places,
            padding=padding.to(device) if padding.any() else None,
        )[:, 0, :vocab]
        left = []
        for number, (row, own) in enumerate(zip(going, logits.float().cpu())):
            chosen = sample(own, temperature, top_p, row.generator)
            if chosen not in stop:
                row.ids.append(chosen)
                row.read += 1
            if chosen in stop or ends(row.written):
                yield row.number, row.written
            else:
                left.append(number)
        if len(left) < len(going):
            cache.keep(torch.tensor(left, device=device, dtype=torch.int64))
            padding, going = padding[left], [going[number] for number in left]
        unread = cache.length == context
        for row in going:
            if row.read > context:
                row.read, unread = max(1, context // 2), True
    for row in going:
        yield row.number, row.written


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw one id from logits [vocab], float32 on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(descending=True, stable=True)
    # A token stays while those before it have not reached top_p: so the first one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
