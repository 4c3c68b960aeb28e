"""The process of `germinal export`.

`python -m trainer.process.entry trainer.export.command RUN --out DIR [options]`
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.exit_codes import DONE, FAILED, WRONG, of_request, request_in_words
from common.standard_error import complain
from trainer.export.export import export
from trainer.export.weights import DTYPES
from trainer.process.interrupts import LeaveAtOnce, Stopped

SHARD_BYTES = 5 * 10**9
"""Of a file of weights, where nothing is asked for."""


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Write the folder and print what it holds; return the exit code.

    `at_once` answers signals until a folder is written; from then on one ends the export, and what it has
    written is removed.
    """
    parser = argparse.ArgumentParser("germinal export", description="write a run as a Hugging Face folder")
    parser.add_argument("run", metavar="RUN", help="run folder, or the config in it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--step", type=int, metavar="N", help="that checkpoint (default: the newest)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights")
    parser.add_argument("--shard-bytes", type=int, metavar="N", help="of a file, at most")
    parser.add_argument("--merge", action="store_true", help="LoRA's branches into their matrices")
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help="of germinal evaluate --out")
    options = parser.parse_args(arguments)
    if at_once:
        at_once.unwind()
    try:
        done = export(
            options.run,
            options.out,
            step=options.step,
            dtype=options.dtype,
            shard_bytes=options.shard_bytes or SHARD_BYTES,
            merge=options.merge,
            evaluation=options.evaluation,
        )
    except ValueError as error:
        return complain(error, WRONG)
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)
    except Stopped as stop:
        left = "is whole" if options.out.exists() else "was not written"
        return complain(f"{request_in_words(stop.number)}: {options.out} {left}", of_request(stop.number))
    files = len(done.written.files)
    if not files:
        print(
            f"{options.out}: {done.architecture} of step {done.step}, {done.written.parameters:,} parameters"
        )
        if options.shard_bytes:
            print("--shard-size: of a whole model; an adapter alone is one file")
        return DONE
    print(
        f"{options.out}: {done.architecture} of step {done.step}, {done.written.parameters:,} parameters, "
        f"{done.written.bytes:,} bytes as {options.dtype} in {files} file{'s' * (files > 1)}"
    )
    if done.tokenizer != "AutoTokenizer":
        print(
            f"load its tokenizer with {done.tokenizer}: AutoTokenizer builds one of its own for "
            "this architecture"
        )
    return DONE
