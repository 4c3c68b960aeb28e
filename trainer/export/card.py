"""README.md of an exported model: what it is, what it was trained on, how well it does, what proves which."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from data.corpus.manifest import Manifest, read_manifest
from trainer.config.plain import leaves, plain
from trainer.config.run_config import RunConfig
from trainer.export.figures import evaluated_figures, recorded_figures

_SECTIONS = ("objective", "optim", "train")
_OF_A_MACHINE = ("train.threads", "train.ranks", "train.micro_batch", "train.eval_bias")


@dataclass(frozen=True)
class Facts:
    """What a card says.

    cfg: the run's config.
    run: the run folder.
    step: of the checkpoint.
    state: the content of its state.json.
    architecture: the class of transformers.
    dtype: of the weights.
    parameters: how many.
    files: name → xxh3_128 of each file of weights.
    tokenizer: the class of transformers that gives the ids that the model was trained on.
    evaluation: the run's entry of the document of `germinal evaluate`; empty: there is none.
    """

    cfg: RunConfig
    run: Path
    step: int
    state: Mapping[str, Any]
    architecture: str
    dtype: str
    parameters: int
    files: Mapping[str, str]
    tokenizer: str = "AutoTokenizer"
    evaluation: Mapping[str, Any] = field(default_factory=dict)


def card(facts: Facts) -> str:
    """Return the card. Nothing in it depends on when, where or on which layout the run was trained or
    exported.
    """
    figures = recorded_figures(facts.run, facts.step), evaluated_figures(facts.evaluation)
    return "\n".join((*_front(facts), *_use(facts), *_training(facts), *_data(facts), *chain(*figures), ""))


def _front(facts: Facts) -> Iterator[str]:
    yield from (
        "---",
        "library_name: transformers",
        "tags:",
        "- germinal",
        f"- {facts.cfg.model.kind}",
        "---",
    )
    yield from ("", f"# {facts.cfg.name}", "")
    tokens = facts.state["state"]["tokens"]
    yield (
        f"A {facts.architecture} of {facts.parameters:,} parameters in {facts.dtype}, trained by Germinal "
        f"for {facts.step:,} steps on {tokens:,} targets."
    )


def _use(facts: Facts) -> Iterator[str]:
    tokenizer = facts.cfg.model.vocab > 0
    names = [facts.architecture, *([facts.tokenizer] if tokenizer else [])]
    yield from ("", "## How to load it", "", "```python", f"from transformers import {', '.join(names)}", "")
    yield f'model = {facts.architecture}.from_pretrained("FOLDER")'
    if tokenizer:
        yield f'tokenizer = {facts.tokenizer}.from_pretrained("FOLDER")'
    yield from ("```", "")
    if facts.tokenizer != "AutoTokenizer":
        yield (
            f"`AutoTokenizer` builds a tokenizer of its own for {facts.architecture}, which gives other ids "
            f"than tokenizer.json where that is not Qwen's: use `{facts.tokenizer}`."
        )
    yield from ("", "It needs transformers 5. Training had no dropout, so the config asks for none.")


def _training(facts: Facts) -> Iterator[str]:
    """The keys of the config that shape the result, and what proves which weights these are."""
    yield from ("", "## How it was trained", "", "| key | value |", "| --- | --- |")
    values = plain(facts.cfg)
    values["model"].pop("init_from", None)
    for section in ("model", *_SECTIONS):
        for key, value in leaves(values[section], section):
            if key not in _OF_A_MACHINE:
                yield f"| `{key}` | {_cell(value)} |"
    yield f"| `data.seq_len` | {facts.cfg.data.seq_len} |"
    yield f"| `seed` | {facts.cfg.seed} |"
    identity = facts.state["identity"]
    software = ", ".join(f"{name} {version}" for name, version in sorted(identity["software"].items()))
    yield from ("", "## Provenance", "", "| what | value |", "| --- | --- |")
    yield f"| step | {facts.step} |"
    yield f"| sequences read | {facts.state['state']['sequences']:,} |"
    yield f"| fingerprint of the data | `{identity['data']}` |"
    if sha256 := identity.get("tokenizer", {}).get("sha256"):
        yield f"| tokenizer, SHA-256 | `{sha256}` |"
    yield f"| software | {software} |"
    for name, digest in facts.files.items():
        yield f"| {name}, xxh3_128 | `{digest}` |"


def _data(facts: Facts) -> Iterator[str]:
    yield from ("", "## Data", "", "| corpus | weight | documents | tokens | fingerprint |")
    yield "| --- | ---: | ---: | ---: | --- |"
    cards: dict[Path, str] = {}
    for source in facts.cfg.data.sources:
        # Not the whole path, which is a machine's and not the model's.
        name = source.name or "/".join(Path(source.path).parts[-2:])
        manifest = _manifest(source.path)
        if manifest is None:
            yield f"| {name} | {source.weight:g} | not there when this was exported | | |"
            continue
        yield (
            f"| {name} | {source.weight:g} | {manifest.documents:,} | {manifest.tokens:,} | "
            f"`{manifest.fingerprint[:12]}` |"
        )
        for folder in (Path(source.path), Path(source.path).parent):
            if (file := folder / "datacard.md").is_file():
                cards.setdefault(file, file.read_text(encoding="utf-8", errors="replace"))
                break
    for number, text in enumerate(cards.values(), 1):
        title = "Data card" if len(cards) == 1 else f"Data card {number}"
        yield from ("", f"### {title}", "", *_below(text))


def _below(text: str) -> Iterator[str]:
    """Yield the lines of a data card as they stand below a heading of ours: without title and pictures."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith("![")]
    for line in "\n".join(lines).strip().splitlines():
        yield f"##{line}" if line.startswith("#") else line


def _manifest(path: str) -> Manifest | None:
    try:
        return None if "://" in path else read_manifest(path)
    except ValueError:
        return None


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ") or "(empty)"
