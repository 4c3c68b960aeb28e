"""`germinal data`: show what is in a prepared corpus, and verify every byte of it."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from launch import options, tables


def add_command(add: options.AddCommand) -> None:
    parser = add("data", "what is in a prepared corpus, and whether every byte is as it was written")
    add = options.command_adder(parser)

    sub = add("inspect", "documents, tokens, bytes, shards, tokenizer")
    _add_folder(sub)
    sub.add_argument(
        "--seq-len", type=options.count, metavar="N", help="say how it packs into sequences of N"
    )
    what = "say what sequence N of a run is, and show its text; DIR is then a run folder or a config"
    sub.add_argument("--sequence", type=options.integer, metavar="N", help=what)
    what = "write the picture of that sequence as the run sees it, its views side by side"
    sub.add_argument("--out", metavar="FILE.png", help=what)
    options.add_json(sub)
    sub.set_defaults(run=data_inspect)

    sub = add("verify", "read every byte and every sample; exit code 1 if one is wrong")
    _add_folder(sub)
    options.add_json(sub)
    sub.set_defaults(run=data_verify)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder that `germinal prepare` made")


def data_inspect(args: argparse.Namespace) -> int:
    """Show what is in a corpus; with `--sequence N`, what that sequence of a run is."""
    if args.sequence is not None:
        return _show_sequence(args)
    if args.out is not None:
        raise ValueError(
            f"--out {args.out}: which sequence's picture? give --sequence N, and a run or a config"
        )
    from data.stream.tracing import inspect

    report = inspect(args.folder, args.seq_len or 0)
    if args.json:
        tables.document(report)
        return 0
    for corpus in report["corpora"]:
        of_text = ("tokens", "text_bytes", "bytes_per_token") if corpus["tokens"] else ("tokens",)
        numbers = ("documents", *of_text, "shards", "shard_bytes")
        facts = {key.replace("_", " "): corpus[key] for key in numbers}
        facts["tokenizer"] = (
            f"{corpus['tokenizer']['vocab']:,} tokens, sha256 {corpus['tokenizer']['sha256'][:12]}"
        )
        if corpus["media"]:
            facts["pictures"] = ", ".join(corpus["media"])
        if corpus["classes"] and "class_documents" in corpus:
            counts = sorted((count, name) for name, count in corpus["class_documents"].items())
            facts["classes"] = f"{len(counts):,}, of " + " to ".join(
                f"{count:,} ({name})" for count, name in (counts[0], counts[-1])
            )
            facts["documents without a class"] = corpus["documents"] - sum(count for count, _ in counts)
        facts["fingerprint"] = corpus["fingerprint"][:12]
        if lengths := corpus.get("document_tokens", {}):
            facts["tokens a document"] = ", ".join(f"{name} {value:,}" for name, value in lengths.items())
        for kind, packing in corpus.get("packing", {}).items():
            facts[f"packing: {kind}"] = (
                f"{packing['sequences']:,} sequences of {packing['seq_len']:,}, "
                f"{packing['utilisation']:.2%} used, {packing['documents_cut']:.1%} of documents cut"
                + (f", {packing['left_out']:.1%} of tokens left out" if packing["left_out"] else "")
            )
        tables.facts(corpus["path"], facts)
    return 0


def _show_sequence(args: argparse.Namespace) -> int:
    from data.stream.tracing import sequence, write_picture
    from trainer.config import reading
    from trainer.folder import run_folder
    from trainer.metrics.consumed import steps_reading

    if args.sequence < 0:
        raise ValueError(f"--sequence {args.sequence}: sequences are counted from 0")
    if Path(args.folder).is_dir() and not run_folder.is_run(Path(args.folder)):
        raise ValueError(
            f"{args.folder}: --sequence {args.sequence} is of a run: give its folder or its config; a corpus "
            "alone has no order"
        )
    out = Path(args.out) if args.out is not None else None
    if out is not None and (out.suffix != ".png" or not out.parent.is_dir()):
        raise ValueError(f"--out {out}: not a .png in a folder that exists")
    cfg = reading.load(args.folder)
    if out is not None:
        write_picture(cfg.data, args.sequence, out, seed=cfg.seed, global_batch=cfg.train.global_batch)
    found = sequence(cfg.data, args.sequence, seed=cfg.seed, global_batch=cfg.train.global_batch)
    first, last = steps_reading(cfg, args.sequence)
    if args.json:
        tables.document(found | {"steps": [first, last]})
        return 0
    has_text = any(piece["ids"] for piece in found["pieces"])
    tables.facts(
        f"sequence {args.sequence} of {args.folder}",
        {
            "read by step": str(first) if first == last else f"one of {first} to {last}",
            "source": found["source"],
            "corpus": found["corpus"],
            "epoch": found["epoch"],
        }
        | ({"tokens that another follows": found["followed_tokens"]} if has_text else {})
        | ({"picture": args.out} if out is not None else {})
        | {f"quarantined: {e['shard']}": e["sample"] for e in found["quarantined"]},
    )
    _show_pieces(found["pieces"], "---")
    _show_pieces(found.get("partner", []), "--- partner:")
    return 0


def _show_pieces(pieces: list[dict[str, Any]], mark: str) -> None:
    for piece in pieces:
        what = f"from token {piece['from_id']:,}, {len(piece['ids']):,} of {piece['document_ids']:,}"
        print(
            f"{mark} {piece['shard']} {piece['sample']} ({_origin(piece['meta'])}): "
            + (what if piece["ids"] else "no text")
            + (f", class {piece['class']}" if piece["class"] is not None else "")
        )
        if piece["ids"]:
            print(piece["text"] if piece["text"] is not None else piece["ids"])
        for number, text in piece.get("marked", {}).items():
            print(f"marked {number}: {text!r}")


def _origin(meta: dict[str, Any] | None) -> str:
    meta = meta or {}
    path = str(meta.get("path") or meta.get("source") or "origin unknown")
    return path + "".join(f", {name} {meta[name]}" for name in ("key", "row", "record") if name in meta)


def data_verify(args: argparse.Namespace) -> int:
    """Read every byte and every sample; return 1 if anything differs from the manifest."""
    from data.verify.verify import verify

    findings = verify(args.folder)
    if args.json:
        tables.document({"sound": not findings, "findings": [dataclasses.asdict(f) for f in findings]})
    elif findings:
        lines = [(f.file, f.sample, "" if f.offset < 0 else f.offset, f.problem) for f in findings]
        tables.rows(f"{args.folder}: damaged", ("file", "sample", "offset", "problem"), lines)
    else:
        print(f"{args.folder}: sound: every byte and every sample is what the manifest says")
    return int(bool(findings))
