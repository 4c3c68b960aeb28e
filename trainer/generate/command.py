"""The process of `germinal generate`.

`python -m trainer.process.entry trainer.generate.command RUN --prompt TEXT [options]`
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, FAILED, INTERRUPTED, WRONG
from common.standard_error import complain, nobody_reads
from trainer.config.schema import INT64
from trainer.generate.text import continue_text
from trainer.process.interrupts import LeaveAtOnce


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Print the prompt and its continuation as it is written; return the exit code.

    `at_once` answers signals until there is text.
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
        return _print_text(options, at_once)
    except ValueError as error:
        return complain(error, WRONG)
    except BrokenPipeError:
        return nobody_reads()
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)


def _print_text(options: dict[str, Any], at_once: LeaveAtOnce | None) -> int:
    try:
        parts = continue_text(**options)
        if at_once:
            at_once.end()
        for part in chain([options["prompt"]], parts, ["\n"]):
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
    sys.exit(main(sys.argv[1:]))
