"""`germinal prepare`: make a corpus, and report what came in and what went out."""

import argparse
import dataclasses
import inspect
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from data.prepare.embedded.names import EMBEDDED, PREFIX
from data.prepare.recipe import Recipe
from launch import options, tables
from launch.recipe_help import ABOUT

if TYPE_CHECKING:
    from data.prepare.report.outcome import PrepareReport


def add_command(add: options.AddCommand) -> None:
    parser = add("prepare", "make a corpus: text, code or JSONL → tokenised, indexed shards and a manifest")
    parser.usage = "germinal prepare SOURCE… --out DIR (--tokenizer FILE | --train-tokenizer N) [options]"
    parser.epilog = inspect.getdoc(Recipe)
    embedded = f"or one of {', '.join(PREFIX + name for name in EMBEDDED)}"
    source = f"folder, file, glob, {{a..b}} range, @list, URL, - for JSONL on standard input; {embedded}"
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help=source)
    out = "folder of the corpus; with held-out documents, DIR/train and DIR/heldout"
    parser.add_argument("--out", required=True, metavar="DIR", help=out)
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json, a Hugging Face folder, or the word bytes; pictures without texts need none",
    )
    parser.add_argument(
        "--train-tokenizer",
        type=options.count,
        metavar="N",
        help="train a tokenizer with a vocabulary of N",
    )
    share = "share kept for evaluation, such as 0.02; see --heldout-by"
    parser.add_argument("--heldout", type=float, default=0.0, metavar="X", help=share)
    parser.add_argument(
        "--workers", type=options.count, default=0, metavar="N", help="processes (default: one a core)"
    )
    on = "what runs the processes: local (default), ray (started here), ray:HOST:PORT or ray:auto (a cluster)"
    parser.add_argument("--on", default="local", metavar="ENGINE", help=on)
    options.add_json(parser)
    options.add_fields(parser, Recipe, "reading, cleaning and writing", ABOUT)
    parser.set_defaults(run=prepare, rest="sources")


def prepare(args: argparse.Namespace) -> int:
    """Make a corpus, and print what came in and what went out."""
    from data.prepare.prepare import prepare

    if args.on != "local":
        _prepare_environment(args.on)
    args.started()
    report = prepare(
        args.sources,
        Path(args.out),
        tokenizer=args.tokenizer,
        train_tokenizer=args.train_tokenizer,
        heldout=args.heldout,
        workers=args.workers,
        on=args.on,
        recipe=options.from_fields(args, Recipe),
    )
    if args.json:
        tables.document(dataclasses.asdict(report) | {"out": args.out})
        return 0
    _show_corpora(report, args.out)
    _show_steps(report, args.text_field)
    if report.heldout and report.heldout_by == "position":
        print(f"held out: the end of each file, {args.heldout:.4g} of it, by position")
    if report.tags:
        named = " ".join(f"--tag-name {shlex.quote(tag)}" for tag in report.tags)
        print(f"{len(report.tags)} tags; other splits get the same numbers by {named}")
    for line in chain(_encodings(report.counts, report.examples), _tokenizer_losses(report)):
        print(line)
    return 0


def _prepare_environment(on: str) -> None:
    """Set what Ray takes from the environment alone, unless the user has."""
    names = {"RAY_USAGE_STATS_ENABLED": "0"}  # or Ray reports each cluster to its makers
    if on == "ray":
        # Of a Ray that is started here: it would store a token in the user's home, and give up after 30 s.
        names |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        names |= {"RAY_raylet_start_wait_time_s": "300"}
    for name, value in names.items():
        os.environ.setdefault(name, value)


def _show_corpora(report: "PrepareReport", out: str) -> None:
    sides = [side for side in (report.train, report.heldout) if side]
    columns = ("corpus", "documents", "tokens", "text bytes", "shards")
    lines = [(side.path, side.documents, side.tokens, side.text_bytes, side.shards) for side in sides]
    done = "was complete already, nothing done" if report.was_complete else "done"
    if report.by_another_version:
        done += " (made by another version, which may read the sources otherwise)"
    tables.rows(f"{out}: {done}, {report.vocab:,} tokens in the vocabulary", columns, lines)


def _show_steps(report: "PrepareReport", text_field: str) -> None:
    """Print how many documents were read, changed, removed and written, and why."""
    from data.prepare.report.step_names import in_words, unit_of

    steps = [
        (in_words(step, text_field), documents, size, unit_of(step), *report.examples.get(step, [""])[:1])
        for step, (documents, size) in report.counts.items()
        if documents
    ]
    files = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.files.items()))
    title = f"what came in and what went out (files: {files})"
    tables.rows(title, ("step", "documents", "size", "unit", "for example"), steps)


def _encodings(counts: Mapping[str, tuple[int, int]], examples: Mapping[str, list[str]]) -> Iterator[str]:
    """Warn of documents that are not in the encoding by which they were read."""
    for step, what in (
        ("changed.not_utf8", "documents are not UTF-8 and were read as Windows-1252"),
        ("changed.broken_utf8", "documents are broken UTF-8, with U+FFFD for what could not be read"),
        (
            "removed.undecodable",
            "documents were left out, for they are not valid in the encoding they were read with",
        ),
        ("removed.utf16_without_mark", "documents were left out, for they look like UTF-16"),
    ):
        if step in counts:
            first = "".join(f" ({where})" for where in examples.get(step, [])[:1])
            other = ", or leave them out with --undecodable skip" if step.startswith("changed") else ""
            yield f"{counts[step][0]:,} {what}{first}: name their encoding with --encoding{other}"


def _tokenizer_losses(report: "PrepareReport") -> Iterator[str]:
    """Warn of ids without a text, and of text that does not come back from its ids."""
    if "noted.ids_of_no_text" in report.counts:
        yield (
            f"{report.counts['noted.ids_of_no_text'][0]:,} documents have ids that this tokenizer does not "
            f"decode to text ({report.examples['noted.ids_of_no_text'][0]}): is it the one that made them?"
        )
    same, tried = report.round_trip
    if same < tried:
        yield (
            f"the tokenizer loses text: of {tried:,} documents tried, {tried - same:,} did not come back "
            "from their ids byte for byte (white space, case or characters that it does not know)"
        )
