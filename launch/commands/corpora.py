"""`germinal prepare` and `germinal data`: make a corpus, look into it, prove it."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch import options, tables


def prepare(args: argparse.Namespace) -> int:
    """Make a corpus, and say what came in and what went out."""
    from data.prepare.prepare import prepare
    from data.prepare.recipe import Recipe
    from data.prepare.report.steps import in_words

    args.started()
    report = prepare(
        args.sources,
        Path(args.out),
        tokenizer=args.tokenizer,
        train_tokenizer=args.train_tokenizer,
        heldout=args.heldout,
        workers=args.workers,
        recipe=options.from_fields(args, Recipe),
    )
    if args.json:
        tables.document(dataclasses.asdict(report) | {"out": args.out})
        return 0
    sides = [side for side in (report.train, report.heldout) if side]
    columns = ("corpus", "documents", "tokens", "text bytes", "shards")
    lines = [(side.path, side.documents, side.tokens, side.text_bytes, side.shards) for side in sides]
    done = "was there already, whole" if report.was_complete else "done"
    if report.by_another_version:
        done += " (made by another version, which may read the sources otherwise)"
    tables.rows(f"{args.out}: {done}, {report.vocab:,} tokens in the vocabulary", columns, lines)
    steps = [
        (in_words(step, args.text_field), documents, size, "; ".join(report.examples.get(step, [])[:1]))
        for step, (documents, size) in report.counts.items()
        if documents
    ]
    files = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.files.items()))
    title = f"what came in, from files of kind {files}, and what went out"
    tables.rows(title, ("step", "documents", "characters", "for example"), steps)
    if report.heldout and report.heldout_by == "position":
        print(f"held out: the end of each file, {args.heldout:.4g} of it, by position")
    for line in _encodings(report.counts, report.examples):
        print(line)
    if "noted.ids_of_no_text" in report.counts:
        print(
            f"the ids of {report.counts['noted.ids_of_no_text'][0]:,} documents stand for no text by this "
            f"tokenizer ({report.examples['noted.ids_of_no_text'][0]}): is it the one that made them?"
        )
    same, tried = report.round_trip
    if same < tried:
        print(
            f"the tokenizer loses text: of {tried:,} documents tried, {tried - same:,} did not come back "
            "from their ids byte for byte (white space, case or characters that it does not know)"
        )
    return 0


def _encodings(counts: Mapping[str, tuple[int, int]], examples: Mapping[str, list[str]]) -> Iterator[str]:
    """What to say loudly of documents that were not in the encoding they were read by."""
    for step, what in (
        ("changed.not_utf8", "documents are not UTF-8 and were read as Windows-1252"),
        ("changed.broken_utf8", "documents are broken UTF-8, with U+FFFD for what could not be read"),
        ("removed.undecodable", "documents were left out, for they are not in the encoding"),
        ("removed.utf16_without_mark", "documents were left out, for they look like UTF-16"),
    ):
        if step in counts:
            first = "".join(f" ({where})" for where in examples.get(step, [])[:1])
            other = ", or leave them out with --undecodable skip" if step.startswith("changed") else ""
            yield f"{counts[step][0]:,} {what}{first}: name their encoding with --encoding{other}"


def data_inspect(args: argparse.Namespace) -> int:
    """What is in a corpus; with `--sequence N`, what that sequence of a run is."""
    if args.sequence is not None:
        return _sequence(args)
    from data.stream.tracing import inspect

    report = inspect(args.folder, args.seq_len or 0)
    if args.json:
        tables.document(report)
        return 0
    for corpus in report["corpora"]:
        numbers = ("documents", "tokens", "text_bytes", "bytes_per_token", "shards", "shard_bytes")
        facts = {key.replace("_", " "): corpus[key] for key in numbers}
        facts["tokenizer"] = (
            f"{corpus['tokenizer']['vocab']:,} tokens, sha256 {corpus['tokenizer']['sha256'][:12]}"
        )
        facts["fingerprint"] = corpus["fingerprint"][:12]
        lengths = corpus.get("document_tokens", {})
        facts["tokens a document"] = ", ".join(f"{name} {value:,}" for name, value in lengths.items())
        for kind, packing in corpus.get("packing", {}).items():
            facts[f"packing: {kind}"] = (
                f"{packing['sequences']:,} sequences of {packing['seq_len']:,}, "
                f"{packing['utilisation']:.2%} used, {packing['documents_cut']:.1%} of documents cut"
            )
        tables.facts(corpus["path"], facts)
    return 0


def _sequence(args: argparse.Namespace) -> int:
    from data.stream.tracing import sequence
    from trainer.config import run_config as config
    from trainer.folder import run_folder
    from trainer.metrics.consumed import steps_reading

    if args.sequence < 0:
        raise ValueError(f"--sequence {args.sequence}: sequences are counted from 0")
    if Path(args.folder).is_dir() and not run_folder.is_run(Path(args.folder)):
        raise ValueError(
            f"{args.folder}: --sequence {args.sequence} is of a run: give its folder or its config; a corpus "
            "alone has no order"
        )
    cfg = config.load(args.folder)
    found = sequence(cfg.data, args.sequence, seed=cfg.seed, global_batch=cfg.train.global_batch)
    first, last = steps_reading(cfg, args.sequence)
    if args.json:
        tables.document(found | {"steps": [first, last]})
        return 0
    tables.facts(
        f"sequence {args.sequence} of {args.folder}",
        {
            "read by step": str(first) if first == last else f"one of {first} to {last}",
            "source": found["source"],
            "corpus": found["corpus"],
            "epoch": found["epoch"],
            "counted targets": found["counted_targets"],
        }
        | {f"quarantined: {e['shard']}": e["sample"] for e in found["quarantined"]},
    )
    for piece in found["pieces"]:
        print(
            f"--- {piece['shard']} {piece['sample']} ({_origin(piece['meta'])}): from token "
            f"{piece['from_id']:,}, {len(piece['ids']):,} of {piece['document_ids']:,}"
        )
        print(piece["text"] if piece["text"] is not None else piece["ids"])
    return 0


def _origin(meta: dict[str, Any] | None) -> str:
    meta = meta or {}
    return str(meta.get("path") or meta.get("source") or "origin unknown")


def data_verify(args: argparse.Namespace) -> int:
    """Read every byte and every sample; 1 if anything is not what the manifest says."""
    from data.corpus.verify import verify

    findings = verify(args.folder)
    if args.json:
        tables.document({"sound": not findings, "findings": [dataclasses.asdict(f) for f in findings]})
    elif findings:
        lines = [(f.file, f.sample, "" if f.offset < 0 else f.offset, f.problem) for f in findings]
        tables.rows(f"{args.folder}: damaged", ("file", "sample", "offset", "problem"), lines)
    else:
        print(f"{args.folder}: sound: every byte and every sample is what the manifest says")
    return int(bool(findings))
