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
from trainer.models.config import init_from
from trainer.record.reading import newest

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
    adapter: the format of an adapter alone, "PEFT" or "germinal"; empty: the whole model was written.
        `architecture` is then the class that PEFT adds it to, if there is one.
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
    adapter: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)


def card(facts: Facts) -> str:
    """Return the card. Nothing in it depends on when, where or on which layout the run was trained or
    exported.
    """
    figures = recorded_figures(facts.run, facts.step), evaluated_figures(facts.evaluation)
    return "\n".join((*_front(facts), *_use(facts), *_training(facts), *_data(facts), *chain(*figures), ""))


def _front(facts: Facts) -> Iterator[str]:
    library = {"": ["library_name: transformers"], "PEFT": ["library_name: peft"]}
    yield from (
        "---",
        *library.get(facts.adapter, []),
        "tags:",
        "- germinal",
        f"- {facts.cfg.model.kind}",
        "---",
    )
    yield from ("", f"# {facts.cfg.name}", "")
    tokens = facts.state["state"]["tokens"]
    what = f"An adapter ({facts.cfg.finetune.method})" if facts.adapter else f"A {facts.architecture}"
    name, _ = _base(facts)
    began = f", from {name} on" * bool(name)
    yield (
        f"{what} of {facts.parameters:,} parameters in {facts.dtype}, trained by Germinal "
        f"for {facts.step:,} steps on {tokens:,} targets{began}."
    )


def _base(facts: Facts) -> tuple[str, str]:
    """Return (name, hash) of the weights that the run began from; empty: none, or not known."""
    if not (given := init_from(facts.cfg.model)):
        return "", ""
    found = facts.state["identity"].get("base") or next(
        (line for line in newest(facts.run / "events.jsonl") if line.get("kind") == "init"), {}
    )
    # Not the whole path, which is a machine's and not the model's.
    return "/".join(Path(given).parts[-2:]), str(found.get("hash", ""))


def _use_adapter(facts: Facts) -> Iterator[str]:
    yield from ("", "## How to load it", "")
    if facts.architecture:
        yield from (
            "```python",
            "from peft import PeftModel",
            f"from transformers import {facts.architecture}",
        )
        yield from ("", f'base = {facts.architecture}.from_pretrained("BASE")')
        yield from ('model = PeftModel.from_pretrained(base, "FOLDER")', "```", "")
    yield "Germinal begins from it with the keys `model.init_from: BASE` and `finetune.adapter: FOLDER`."


def _use(facts: Facts) -> Iterator[str]:
    if facts.adapter:
        yield from _use_adapter(facts)
        return
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
    values["finetune"]["adapter"] = Path(facts.cfg.finetune.adapter).name
    tuned = ("finetune",) if facts.cfg.finetune.method != "none" else ()
    for section in ("model", *_SECTIONS, *tuned):
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
    for what, value in zip(("base", "base, hash"), _base(facts), strict=True):
        if value:
            yield f"| {what} | `{value}` |"
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
