"""Run and prompt → text, as it is written."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from data.tokenizer import loading
from trainer.config import reading
from trainer.folder import run_folder
from trainer.generate.sampling import generate
from trainer.models.config import NEXT_TOKEN
from trainer.trained.trained_model import TrainedModel, load_newest, load_step


def continue_text(
    run: Path,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    step: int | None = None,
) -> Iterator[str]:
    """Load a checkpoint of a run and continue `prompt` with it; see `continue_prompt`.

    Args:
        run: run folder, or the config in it.
        prompt, max_tokens, temperature, top_p, seed: see `continue_prompt`.
        step: the checkpoint's; default: the newest that verifies.

    Raises:
        ValueError: `run` is no run folder, its model predicts no next token, or there is no checkpoint of
            `step`.
        RuntimeError: no checkpoint verifies, or the tokenizer is not the one that the run was trained with.
    """
    run = run_folder.find(run)
    cfg = reading.load(run / run_folder.CONFIG)
    if NEXT_TOKEN not in cfg.model.offers:
        raise ValueError(f"{run}: model.kind={cfg.model.kind} predicts no next token: it continues no text")
    trained = load_newest(cfg, run) if step is None else load_step(cfg, run, step)
    return continue_prompt(
        trained, prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
    )


def continue_prompt(
    trained: TrainedModel,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text after `prompt` in parts, as the model writes it.

    Args:
        trained: the model and its tokenizer.
        prompt: text to continue; an empty prompt begins a new document.
        max_tokens, temperature, top_p, seed: see `trainer.generate.sampling.generate`.

    A part ends between two characters, whatever bytes a token stands for.
    """
    tokenizer = trained.tokenizer
    tokenizer.encode_special_tokens = True  # what looks like a special token in the prompt is text
    before, _ = loading.template(tokenizer, trained.separator) if trained.template else ([], [])
    ids = generate(
        trained.model,
        [trained.separator, *before, *tokenizer.encode(prompt, add_special_tokens=False).ids],
        max_tokens=max_tokens,
        context=trained.context,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=trained.separator,
        vocab=loading.vocab_size(tokenizer),
    )
    return decode(ids, tokenizer)


def decode(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of `ids` in parts; a character whose bytes come in several tokens waits for the last."""
    stream, written, so_far = DecodeStream(skip_special_tokens=True), 0, []
    for token in ids:
        so_far.append(token)
        if part := stream.step(tokenizer, token):
            written += len(part)
            yield part
    yield tokenizer.decode(so_far)[written:]
