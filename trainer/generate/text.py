"""Run and prompt → text, as it is written."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.files import parsed, read_each
from parallel.world.runtime import Runtime
from trainer.config import evaluating, of_folder
from trainer.models.config import NEXT_TOKEN
from trainer.ranks import Ranks
from trainer.trained.decoding import open_for_decoding
from trainer.trained.ends import ends_of
from trainer.trained.on_ranks import open_texts
from trainer.trained.sampling import generate, generate_many
from trainer.trained.trained_model import TrainedModel, load_newest, load_step
from trainer.trained.weights import load_model


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
    return continue_prompt(
        open_writer(run, step=step),
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def open_writer(
    run: Path,
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    runtime: Runtime | None = None,
) -> TrainedModel:
    """Load a checkpoint of a run, or a Hugging Face folder, that continues texts.

    Args:
        run: run folder, or the config in it; or a Hugging Face folder.
        step: the checkpoint's; default: the newest that verifies.
        overrides: keys of the config, such as data.seq_len, and the layout of several ranks.
        runtime: this rank, where there are several. Collective then.

    Raises as `continue_text` does, and ValueError where the layout cannot be.
    """
    run = of_folder.find(run)
    world = 1 if runtime is None else runtime.world
    cfg = evaluating.load_to_decode(run, overrides, world)
    if NEXT_TOKEN not in cfg.model.offers:
        raise ValueError(f"{run}: model.kind={cfg.model.kind} predicts no next token: it continues no text")
    if runtime is not None and world > 1:
        return open_for_decoding(run, overrides, runtime, step=step)
    if of_folder.is_folder(run):
        _, texts = open_texts(cfg, run, Ranks(), step=step)
        model = load_model(cfg, run)
        ends = ends_of(cfg, run, texts)
        trained = TrainedModel(
            model, texts.tokenizer, cfg.data.seq_len, texts.separator, ends, texts.template
        )
    else:
        trained = load_newest(cfg, run) if step is None else load_step(cfg, run, step)
    if "cache" not in inspect.signature(trained.model.forward).parameters:
        raise ValueError(
            f"{run}: the forward of model.kind={cfg.model.kind} takes no `cache`, with which texts are "
            "continued: see trainer/trained/sampling.py, what `generate` asks of a model"
        )
    return trained


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
        max_tokens, temperature, top_p, seed: see `trainer.trained.sampling.generate`.

    A part ends between two characters, whatever bytes a token stands for.
    """
    texts = trained.prompting
    ids = generate(
        trained.model,
        [*texts.beginning, *texts.encode(prompt)],
        max_tokens=max_tokens,
        context=trained.context,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=trained.ends,
        vocab=texts.vocab,
    )
    return decode(ids, trained.tokenizer)


def continue_prompts(
    trained: TrainedModel,
    prompts: Sequence[str],
    *,
    batch: int,
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text after each prompt, which `continue_prompt` gives for it alone; `batch` of them at once.

    A text comes as soon as it and those before it have ended. The other arguments are those of
    `continue_prompt`.
    """
    texts = trained.prompting
    for first in range(0, len(prompts), batch):
        ended: dict[int, list[int]] = {}
        shown = 0
        for number, ids in generate_many(
            trained.model,
            [[*texts.beginning, *texts.encode(prompt)] for prompt in prompts[first : first + batch]],
            max_tokens=max_tokens,
            context=trained.context,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=trained.ends,
            vocab=texts.vocab,
        ):
            ended[number] = ids
            while shown in ended:
                yield "".join(decode(iter(ended.pop(shown)), trained.tokenizer))
                shown += 1


def read_prompts(path: Path) -> list[str]:
    """Read a file of prompts, one a line: a text as it is, a JSON text, or a JSON object with "prompt".

    ValueError, one line, where it is anything else, or empty.
    """
    try:
        found = read_each(path, _prompt)
    except ValueError as error:
        raise ValueError(f"--prompts {error}") from None
    if not found:
        raise ValueError(f"--prompts {path}: has no line")
    return found


def _prompt(line: str) -> list[str]:
    entry: Any = parsed(line) if line.startswith(("{", '"')) else line
    entry = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(entry, str):
        raise ValueError('has no "prompt" that is a text')
    return [entry]


def decode(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of `ids` in parts; a character whose bytes come in several tokens waits for the last.

    A part is the text of its tokens behind those of the part before: some tokenizers write no space before a
    text's first token. Not the library's `DecodeStream`, which ends in an error where bytes that are no UTF-8
    change how those before them are shown, as SentencePiece's do.
    """
    shown: list[int] = []  # the tokens of the last part
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        before, text = tokenizer.decode(shown), tokenizer.decode([*shown, *waiting])
        if len(text) > len(before) and not text.endswith("\ufffd"):
            yield text[len(before) :]
            shown, waiting = waiting, []
    yield tokenizer.decode([*shown, *waiting])[len(tokenizer.decode(shown)) :]
