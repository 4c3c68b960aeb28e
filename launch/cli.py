"""`germinal`: parses the command line, runs one command, and reports its failure in one line.

Each command is a file of `launch/begin` or `launch/look`, which declares its arguments beside what it does.
Nothing here imports torch, and a command imports what it needs inside its function: help and mistakes answer
at once.

Exit codes: 0 done; 1 failed; 2 the command line or the config is wrong; 75 preempted, state saved, or
the run is held by another process: run again; 130 interrupted.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from common.exit_codes import FAILED, INTERRUPTED, WRONG
from common.standard_error import complain, nobody_reads
from launch.begin import (
    attach,
    evaluate,
    export,
    finetune,
    generate,
    prepare,
    rank,
    submit,
    train,
    transfer,
    verify,
)
from launch.look import cancel, checkpoint, corpus, doctor, follow, logs, plot, reference, status
from launch.options import command_adder

COMMANDS = (
    prepare,
    corpus,
    train,
    finetune,
    transfer,
    rank,
    submit,
    status,
    logs,
    follow,
    cancel,
    verify,
    generate,
    evaluate,
    export,
    checkpoint,
    reference,
    plot,
    attach,
    doctor,
)  # in the order of --help

DESCRIPTION = "Pre-train transformers: the result does not depend on the layout, the loader or the fault."


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
    """Run one command and return its exit code. A failure is one line on standard error.

    Args:
        arguments: the words after `germinal`; default: those of this process.
        started: a command calls this once Ctrl-C has to raise KeyboardInterrupt, because the command then
            has something to tidy up (see `launch.entry`).
    """
    try:
        args = parse(sys.argv[1:] if arguments is None else list(arguments))
        args.started = started
        return args.run(args)
    except ValueError as error:
        return complain(error, WRONG)
    except BrokenPipeError:  # `germinal … | head` has closed standard output
        return nobody_reads()
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it sets `args.run` to the function of the given command."""
    parser = _Parser(prog="germinal", description=DESCRIPTION)
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="store_true", help="print the version")
    add = command_adder(parser)
    for command in COMMANDS:
        command.add_command(add)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command and its arguments; ValueError, one line, where they are wrong."""
    if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")):
        arguments = arguments[1:]  # `deepspeed --no_python germinal rank …` puts it before the command
    parser = build_parser()
    _check_command_names(parser, arguments)
    args, extra = parser.parse_known_args(arguments)
    # argparse takes positionals in one run only; those after an option (`CONFIG --nproc 2 key=value`) remain.
    unknown = [word for word in extra if word.startswith("-") or not hasattr(args, "rest")]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}; {_instead(args, unknown[0])}")
    if extra:
        setattr(args, args.rest, [*getattr(args, args.rest), *extra])
    if args.version:
        args.run = _version
    if not hasattr(args, "run"):
        raise ValueError(f"which command? see `{args.parser.prog} --help`")
    return args


def _check_command_names(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raise ValueError with the nearest name for a misspelled command, as in `germinal data inspekt`."""
    for word in arguments:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups or word.startswith("-"):
            return
        if word not in groups[0].choices:
            near = difflib.get_close_matches(word, groups[0].choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(groups[0].choices)}"
            raise ValueError(f"unknown command {word!r}; {hint}")
        parser = groups[0].choices[word]


def _instead(args: argparse.Namespace, word: str) -> str:
    """Say what to write instead of an unknown option: the nearest option, or a key of the config."""
    known = [option for action in args.parser._actions for option in action.option_strings]
    option = word.split("=")[0]
    is_key = "." in option and hasattr(args, "overrides")  # --train.steps is no --steps
    near = [] if is_key else difflib.get_close_matches(option, known, n=1, cutoff=0.7)  # --seed is no --step
    if near and (near[0] != "--help" or option.startswith("--h")):  # --steps is as near to --help as to any
        return f"did you mean {near[0]}?"
    keys = "keys of the config are key=value, without dashes; " if hasattr(args, "overrides") else ""
    return f"{keys}see `{args.parser.prog} --help`"


def _version(args: argparse.Namespace) -> int:
    from importlib.metadata import version as installed

    print(f"germinal {installed('germinal')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
