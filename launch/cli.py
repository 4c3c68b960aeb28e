"""`germinal`: the command line. Parses, checks what can be checked at once, and hands over.

Nothing here imports torch, and a command's needs are imported inside it: help and mistakes answer at once.
Exit codes: 0 done; 1 failed; 2 the command line or the config is wrong; 75 preempted, state saved, or
the run is held by another process: run again; 130 interrupted.
"""

import argparse
import difflib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from data.prepare.recipe import Recipe
from launch import options
from launch.commands import checkpoints, commands, corpora, reference
from launch.recipe_help import ABOUT

DESCRIPTION = "Pre-train transformers: the result does not depend on the layout, the loader or the fault."

CONFIG = (
    "YAML file, or a run folder to go on with; paths in it are relative to the working directory, base: to "
    "the file"
)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no abbreviations (an abbreviation breaks when an option is added)."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None, *, started: Callable[[], None] = lambda: None) -> int:
    """Run one command; returns the exit code. A failure is one line on standard error.

    `started` is called by a command that has something to tidy up when it is interrupted.
    """
    try:
        args = parse(sys.argv[1:] if arguments is None else list(arguments))
        args.started = started
        return args.run(args)
    except ValueError as error:
        return _complain(error, 2)
    except BrokenPipeError:  # `germinal … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (RuntimeError, OSError) as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command and its arguments; ValueError, one line, where they are wrong."""
    parser = build_parser()
    _suggest(parser, arguments)
    args, extra = parser.parse_known_args(arguments)
    # argparse takes positionals in one run only; those after an option (`CONFIG --nproc 2 key=value`) remain.
    unknown = [word for word in extra if word.startswith("-") or not hasattr(args, "rest")]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}; {_instead(args, unknown[0])}")
    if extra:
        setattr(args, args.rest, [*getattr(args, args.rest), *extra])
    if args.version:
        args.run = commands.version
    if not hasattr(args, "run"):
        raise ValueError(f"which command? see `{args.parser.prog} --help`")
    return args


def _instead(args: argparse.Namespace, word: str) -> str:
    """What to write instead of an unknown option: the nearest, or a key of the config."""
    known = [option for action in args.parser._actions for option in action.option_strings]
    option = word.split("=")[0]
    near = difflib.get_close_matches(option, known, n=1)
    if near and (near[0] != "--help" or option.startswith("--h")):  # --steps is as near to --help as to any
        return f"did you mean {near[0]}?"
    keys = "keys of the config are key=value, without dashes; " if hasattr(args, "overrides") else ""
    return f"{keys}see `{args.parser.prog} --help`"


def _suggest(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Names the nearest command for a misspelled one, at each level (`germinal data inspekt`)."""
    for word in arguments:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups or word.startswith("-"):
            return
        if word not in groups[0].choices:
            near = difflib.get_close_matches(word, groups[0].choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(groups[0].choices)}"
            raise ValueError(f"unknown command {word!r}; {hint}")
        parser = groups[0].choices[word]


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments; `args.run` is the function of the one that was given."""
    parser = _Parser(prog="germinal", description=DESCRIPTION)
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="store_true", help="print the version")
    add = _adder(parser)
    _prepare(add("prepare", "make a corpus: text, code or JSONL → tokenised, indexed shards and a manifest"))
    _data(add("data", "what is in a prepared corpus, and whether every byte is as it was written"))
    _train(add("train", "train, or go on training, the run that a config describes"))
    _verify(add("verify", "is this layout's run the run of one process? compares them tensor by tensor"))
    _generate(add("generate", "continue a text with a trained run"))
    _checkpoint(add("checkpoint", "list or verify the checkpoints of a run"))
    _keys(add("config", "every key of a config: type, choices, default, unit, meaning"))
    _plot(add("plot", "curves of a run, or of several over one another, as a PNG"))
    return parser


def _adder(parser: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    group = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        sub = group.add_parser(name, help=about, description=about)
        sub.set_defaults(parser=sub)
        return sub

    return add


def _prepare(parser: argparse.ArgumentParser) -> None:
    parser.usage = "germinal prepare SOURCE… --out DIR (--tokenizer FILE | --train-tokenizer N) [options]"
    parser.epilog = inspect.getdoc(Recipe)
    source = "folder, file, glob, {a..b} range, @list, URL, or - for JSONL on standard input"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=source)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the corpus, or DIR/train and DIR/heldout"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json, or the word bytes")
    parser.add_argument("--train-tokenizer", type=_count, metavar="N", help="train one of N tokens")
    parser.add_argument(
        "--heldout", type=float, default=0.0, metavar="X", help="share kept for evaluation, by hash"
    )
    parser.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="processes (default: one a core)"
    )
    _json(parser)
    options.add_fields(parser, Recipe, "reading, cleaning and writing", ABOUT)
    parser.set_defaults(run=corpora.prepare, rest="sources")


def _data(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser)
    for name, run, about in (
        ("inspect", corpora.data_inspect, "documents, tokens, bytes, shards, tokenizer"),
        ("verify", corpora.data_verify, "read every byte and every sample; exit code 1 if one is wrong"),
    ):
        sub = add(name, about)
        sub.add_argument("folder", metavar="DIR", help="folder that `germinal prepare` made")
        if name == "inspect":
            sub.add_argument(
                "--seq-len", type=_count, metavar="N", help="say how it packs into sequences of N"
            )
            what = "say what sequence N of a run is, and show its text; DIR is then a run folder or a config"
            sub.add_argument("--sequence", type=options.integer, metavar="N", help=what)
        _json(sub)
        sub.set_defaults(run=run)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes one key of it")
    parser.add_argument(
        "--nproc", type=_count, default=1, metavar="N", help="ranks on this machine (default 1)"
    )
    parser.set_defaults(rest="overrides")


def _verify(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--steps", type=_count, default=5, metavar="K", help="optimiser steps (default 5)")
    parser.add_argument(
        "--comms",
        action="store_true",
        help="also show what one step sends, by mesh axis, next to the formula",
    )
    _json(parser)
    parser.set_defaults(run=commands.verify)


def _train(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--debug", action="store_true", help="in this very process, on one rank: pdb works")
    parser.set_defaults(run=commands.train)


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder, or the config in it")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="text to continue (empty: a new document)"
    )
    parser.add_argument("--max-tokens", type=_count, default=200, metavar="N", help="default 200")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest (default 0.8)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="X", help="1: among all tokens (default 0.95)"
    )
    parser.add_argument(
        "--seed", type=options.integer, default=0, metavar="N", help="another seed, another text"
    )
    parser.add_argument(
        "--step", type=_count, metavar="N", help="the checkpoint of step N (default: the newest)"
    )
    parser.set_defaults(run=commands.generate)


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser)
    for name, run, about in (
        ("list", checkpoints.checkpoint_list, "step, size and age of every checkpoint"),
        (
            "verify",
            checkpoints.checkpoint_verify,
            "read every byte of every checkpoint; exit code 1 if one is wrong",
        ),
    ):
        sub = add(name, about)
        sub.add_argument("folder", metavar="RUN", help="run folder, or the config in it")
        if name == "verify":
            sub.add_argument("--step", type=_count, metavar="N", help="only the checkpoint of this step")
        _json(sub)
        sub.set_defaults(run=run)


def _keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "key", metavar="KEY", nargs="?", help="a section (optim) or a key (optim.lr); none: all"
    )
    parser.add_argument("--markdown", action="store_true", help="as docs/config.md")
    _json(parser)
    parser.set_defaults(run=reference.config)


def _plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folders, runs/NAME")
    what = "the picture (default: loss.png in the run folder; of several runs, plot.png here)"
    parser.add_argument("--out", default="", metavar="FILE", help=what)
    parser.set_defaults(run=commands.plot, rest="folders")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return options.integer(text)


if __name__ == "__main__":
    sys.exit(main())
