"""The process of `germinal generate`.

`python -m trainer.process.entry trainer.generate.command RUN [key=value…] --prompt TEXT [options]`
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from common.exit_codes import DONE, FAILED, INTERRUPTED, WRONG
from common.standard_error import complain, nobody_reads
from parallel.world import runtime as runtimes
from trainer.config.schema import INT64
from trainer.generate.text import continue_prompt, continue_prompts, open_writer, read_prompts
from trainer.process.interrupts import LeaveAtOnce


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Print the prompt and its continuation as it is written, or for each prompt of a file a JSON object;
    return the exit code. Of several ranks the first one prints.

    `at_once` answers signals until there is text.
    """
    parser = argparse.ArgumentParser("germinal generate", description="continue a text with a trained run")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the config in it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the layout of several ranks")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="empty: begin a new document")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, instead of --prompt")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="prompts at once")
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1: draw among all tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--step", type=int, metavar="N", help="that checkpoint (default: the newest)")
    parser.add_argument("--ranks", action="store_true", help="this process is one of several")
    args = parser.parse_intermixed_args(arguments)
    draws = {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    with ExitStack() as stack:
        try:
            check(prompt=args.prompt, **draws)
            if args.batch < 1:
                raise ValueError(f"--batch {args.batch}: must be at least 1")
            prompts = read_prompts(args.prompts) if args.prompts else None
            runtime = None
            if args.ranks:
                # A signal ends the rank at once: it may wait for another one inside torch.
                if at_once:
                    at_once.listen()
                runtime = runtimes.start()
                stack.callback(runtime.stop)
            trained = open_writer(args.run, step=args.step, overrides=args.overrides, runtime=runtime)
            parts: Iterable[str]
            if prompts is None:
                parts = chain([args.prompt], continue_prompt(trained, args.prompt, **draws), ["\n"])
            else:
                parts = _as_json(prompts, continue_prompts(trained, prompts, batch=args.batch, **draws))
            if at_once and runtime is None:
                at_once.end()
            return _print(parts, shown=runtime is None or runtime.is_writer)
        except ValueError as error:
            return complain(error, WRONG)
        except BrokenPipeError:
            return nobody_reads()
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)


def _as_json(prompts: Sequence[str], texts: Iterator[str]) -> Iterator[str]:
    for prompt, text in zip(prompts, texts, strict=True):
        yield json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n"


def _print(parts: Iterable[str], *, shown: bool) -> int:
    try:
        for part in parts:
            if shown:
                print(part, end="", flush=True)
    except KeyboardInterrupt:  # a reader who has read enough: what was written stands
        print(flush=True)
        return complain("interrupted", INTERRUPTED)
    return DONE


def check(*, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raise ValueError, one line, for a prompt that is no text and for a number that cannot be meant."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that Python could not decode
        raise ValueError(f"--prompt: not UTF-8 from character {error.start} on") from None
    if seed not in INT64:
        raise ValueError(f"--seed {seed}: an integer that does not fit in 64 bits")
    if max_tokens < 1:
        raise ValueError(f"--max-tokens {max_tokens}: must be at least 1")
    if not temperature >= 0:
        raise ValueError(f"--temperature {temperature}: must be 0 or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p {top_p}: must be above 0 and at most 1")


if __name__ == "__main__":
    # A terminal's encoding may lack characters that a model writes.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:], LeaveAtOnce("the end", lost="").begin()))
