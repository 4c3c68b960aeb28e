"""A trained run continues a text: `python -m trainer.generate.generate RUN --prompt TEXT`."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn

from common.exit_codes import DONE, FAILED, INTERRUPTED, WRONG
from common.standard_error import complain, nobody_reads
from data.tokenizer import tokenizer as tokenizers
from parallel.engine import Chunk
from parallel.parameters.initialize import to_device
from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.newest import newest
from trainer.checkpoint.store import load
from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.config.schema import INT64
from trainer.folder import run_folder
from trainer.models.build import build_model
from trainer.models.layers.attention import KVCache
from trainer.process.interrupts import LeaveAtOnce


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
    """Token ids after `prompt` (at least one id), at most `max_tokens`, up to and without the id `stop`.

    `context`: tokens that the model sees at once, best those it was trained on. When they are full, the
    later half is read anew. `temperature` 0 takes the likeliest token; `top_p` draws among the fewest tokens
    that together have that probability (Holtzman et al. 2020, arXiv:1904.09751). Ids from `vocab` on are
    never drawn. The same arguments give the same ids.
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
    """One id drawn from logits [vocab], float32 on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(descending=True, stable=True)
    # A token stays while those before it have not reached top_p: so the first one always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


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
    """What the checkpoint of `step`, or else the newest of `run` that verifies, writes after `prompt`, piece
    by piece as it comes.

    An empty prompt starts a new document. Pieces end between characters, whatever bytes a token stands for.
    ValueError where `run` is no run folder; RuntimeError where it has no checkpoint that verifies, or another
    tokenizer than the run was trained with.
    """
    run = run_folder.find(run)
    cfg = configs.load(run / run_folder.CONFIG)
    loaded = newest_model(cfg, run) if step is None else load_checkpoint(cfg, run, checkpoint_of(run, step))
    return write_after(loaded, prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's model, ready to write. `context`: tokens of a training sequence. `separator`: the id
    between documents. `template`: does the tokenizer's template stand around each document?
    """

    model: nn.Module
    tokenizer: Tokenizer
    context: int
    separator: int
    template: bool


def write_after(
    loaded: Loaded,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """What the model writes after `prompt`, piece by piece; see `continue_text`."""
    tokenizer = loaded.tokenizer
    tokenizer.encode_special_tokens = True  # what looks like a special token in the prompt is text
    before, _ = tokenizers.template(tokenizer, loaded.separator) if loaded.template else ([], [])
    ids = generate(
        loaded.model,
        [loaded.separator, *before, *tokenizer.encode(prompt, add_special_tokens=False).ids],
        max_tokens=max_tokens,
        context=loaded.context,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=loaded.separator,
        vocab=tokenizers.vocab_size(tokenizer),
    )
    return decode(ids, tokenizer)


def decode(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text piece by piece: a character whose bytes come in several tokens waits until it is whole."""
    stream, written, so_far = DecodeStream(skip_special_tokens=True), 0, []
    for token in ids:
        so_far.append(token)
        if piece := stream.step(tokenizer, token):
            written += len(piece)
            yield piece
    yield tokenizer.decode(so_far)[written:]


def load_tokenizer(path: Path, trained_with: dict[str, Any]) -> Tokenizer:
    """The run's tokenizer, proven to be the one in the checkpoint's identity: another one's ids would be read
    as other words, and nothing but the text would tell.
    """
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: restore it from the corpus that the run was trained on")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != trained_with["sha256"]:
        raise RuntimeError(
            f"{path} is not the tokenizer that the run was trained with: sha256 {found[:12]}…, where the "
            f"checkpoint has {trained_with['sha256'][:12]}…: restore it from the corpus"
        )
    return tokenizers.load(path)


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint that verifies; which ones were passed over is said on standard error."""
    root = run / "checkpoints"
    found = newest(root)
    for step, reason in found.passed_over:
        print(f"passed over step {step}: {reason}", file=sys.stderr)
    if found.step is not None:
        return checkpoints.step_folder(root, found.step)
    why = f"none of its {len(found.passed_over)} verifies" if found.passed_over else f"{root} holds none"
    raise RuntimeError(f"{run} has no checkpoint to generate from: {why}; train it first")


def checkpoint_of(run: Path, step: int) -> Path:
    """The verified checkpoint of `step`; ValueError, with those that are there, where there is none."""
    steps = checkpoints.steps(run / "checkpoints")
    if step not in steps:
        raise ValueError(f"--step {step}: {run} has no checkpoint of that step; those there: {steps[::-1]}")
    checkpoints.verify(folder := checkpoints.step_folder(run / "checkpoints", step))
    return folder


def newest_model(cfg: RunConfig, run: Path) -> Loaded:
    """The newest checkpoint that verifies, of a run that may be training: where it has removed an old one
    meanwhile, there is a newer one.
    """
    while True:
        there = set(checkpoints.steps(run / "checkpoints"))
        try:
            return load_checkpoint(cfg, run, newest_checkpoint(run))
        except (RuntimeError, OSError):
            if there <= set(checkpoints.steps(run / "checkpoints")):
                raise


def load_checkpoint(cfg: RunConfig, run: Path, folder: Path, device: str = "") -> Loaded:
    """A verified checkpoint of a run, and the tokenizer that it was trained with; see `load_model`."""
    state = json.loads((folder / checkpoints.STATE).read_bytes())
    trained_with = state["identity"].get("tokenizer")
    if not trained_with:
        raise RuntimeError(
            f"{folder} does not say which tokenizer it was trained with, as old checkpoints do not: "
            "train the run further, and the next one will"
        )
    tokenizer = load_tokenizer(run / "tokenizer.json", trained_with)
    # Checkpoints that do not say were trained on documents without the template.
    template = trained_with.get("template", False)
    model = load_model(cfg, folder, device)
    return Loaded(model, tokenizer, cfg.data.seq_len, trained_with["eos"], template)


def load_model(cfg: RunConfig, folder: Path, device: str = "") -> nn.Module:
    """The model with the weights of a verified checkpoint, in float32, on `device`; without one on the GPU,
    if there is one.
    """
    with torch.device("meta"):
        model = build_model(cfg.model)
    to_device(model, torch.device("cpu"))
    aliases = {alias: canonical for canonical, alias in cfg.model.plan().tied}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}
    load(folder, [_whole(f"model.{name}", tensor) for name, tensor in state.items()])
    for alias, canonical in aliases.items():
        model.get_parameter(alias).data = model.get_parameter(canonical).data
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _whole(name: str, tensor: Tensor) -> Chunk:
    return Chunk(name, tensor, tuple(tensor.shape), (0,) * tensor.ndim, owned=False)


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Print the prompt and its continuation as it is written; returns the exit code.

    `at_once` is what a signal does until there is text.
    """
    parser = argparse.ArgumentParser("germinal generate", description="continue a text with a trained run")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the config in it")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="empty: begin a new document")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1: draw among all tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--step", type=int, metavar="N", help="that checkpoint (default: the newest)")
    options = vars(parser.parse_args(arguments))
    try:
        check(**{name: options[name] for name in options if name not in ("run", "step")})
        return _write(options, at_once)
    except ValueError as error:
        return complain(error, WRONG)
    except BrokenPipeError:
        return nobody_reads()
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)


def _write(options: dict[str, Any], at_once: LeaveAtOnce | None) -> int:
    try:
        pieces = continue_text(**options)
        if at_once:
            at_once.end()
        for piece in chain([options["prompt"]], pieces, ["\n"]):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:  # a reader who has read enough: what was written stands
        print(flush=True)
        return complain("interrupted", INTERRUPTED)
    return DONE


def check(*, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """ValueError, one line, for a prompt that is no text and for a number that cannot be meant."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that Python could not decode
        raise ValueError(f"--prompt: not UTF-8 from character {error.start} on") from None
    if seed not in INT64:
        raise ValueError(f"--seed {seed}: an integer that 64 bits do not hold")
    if max_tokens < 1:
        raise ValueError(f"--max-tokens {max_tokens}: must be at least 1")
    if not temperature >= 0:
        raise ValueError(f"--temperature {temperature}: must be 0 or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p {top_p}: must be above 0 and at most 1")


if __name__ == "__main__":
    # A terminal's encoding may not hold what a model writes.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
