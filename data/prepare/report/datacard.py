"""The data card: what was read, what each step left out or changed, and what the corpus is made of.

`datacard.json` for programs, `datacard.md` for people, and histograms of length and language as pictures.
In `datacard.json` the key "characters" of a step holds its size in the unit of `step_names.unit_of`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.corpus.manifest import Manifest
from data.prepare.report.composition import Profile
from data.prepare.report.step_names import in_words, unit_of
from data.prepare.tally import Tally

LENGTHS_PNG = "datacard-lengths.png"
LANGUAGES_PNG = "datacard-languages.png"
_MOST_ROWS = 30
# Where the rules come from, by a part of the step's name.
CITED = {
    "c4": "C4: Raffel et al. 2020, arXiv:1910.10683, section 2.2",
    "gopher_quality": "Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1",
    "gopher_repetition": "Gopher: Rae et al. 2021, arXiv:2112.11446, table A1",
    "near_duplicate": "MinHash: Broder 1997; bands: Leskovec, Rajaraman, Ullman, section 3.4",
    "contaminated": "n-gram overlap: Brown et al. 2020, arXiv:2005.14165, appendix C",
}


def write_datacard(
    out: Path, settings: Mapping[str, Any], tally: Tally, sides: Mapping[str, Manifest]
) -> None:
    """Write the card of a corpus.

    out: the folder to write into.
    settings: the command's settings.
    tally: what was read, left out and changed.
    sides: name of each side's folder → its manifest.
    """
    profile = Profile()
    for manifest in sides.values():
        profile.merge(manifest.prepare["profile"])
    card = _card(settings, tally, sides, profile)
    (out / "datacard.json").write_text(
        json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    pictures = _draw(out, profile.as_dict())
    (out / "datacard.md").write_text(_markdown(card, pictures), encoding="utf-8")


def _card(
    settings: Mapping[str, Any], tally: Tally, sides: Mapping[str, Manifest], profile: Profile
) -> dict[str, Any]:
    first = next(iter(sides.values()))
    counted = tally.as_dict()
    tokens = sum(manifest.tokens for manifest in sides.values())
    text_bytes = sum(manifest.text_bytes for manifest in sides.values())
    return {
        "settings": dict(settings),
        "read": dict(zip(("documents", "characters"), counted["counts"].get("read", [0, 0]))),
        "steps": [
            {"step": step, "documents": n, "characters": size, "examples": counted["examples"].get(step, [])}
            for step, (n, size) in counted["counts"].items()
            if step != "read"
        ],
        "corpus": {
            name: {
                "documents": manifest.documents,
                "tokens": manifest.tokens,
                "text_bytes": manifest.text_bytes,
                "shards": len(manifest.shards),
                "fingerprint": manifest.fingerprint,
            }
            for name, manifest in sides.items()
        },
        "tokenizer": {
            "vocab": first.tokenizer.vocab,
            "sha256": first.tokenizer.sha256,
            "text_bytes_per_token": round(text_bytes / max(1, tokens), 4),
        },
        "made_of": profile.as_dict(),
    }


def _markdown(card: Mapping[str, Any], pictures: list[str]) -> str:
    read = card["read"]
    lines = ["# Data card", "", "## The corpus", ""]
    lines += _table(
        ("part", "documents", "tokens", "text bytes", "shards", "fingerprint"),
        [
            (
                name,
                side["documents"],
                side["tokens"],
                side["text_bytes"],
                side["shards"],
                side["fingerprint"][:12],
            )
            for name, side in card["corpus"].items()
        ],
    )
    tokenizer = card["tokenizer"]
    tried = {name: counts[0] for name, counts in card["made_of"]["round_trip"].items()}
    same, every = tried.get("same", 0), sum(tried.values())
    came_back = f"{same:,} of {every:,} documents tried came back from their ids byte for byte"
    lines += [
        f"Tokenizer: {tokenizer['vocab']:,} tokens, {tokenizer['text_bytes_per_token']} bytes of text a "
        f"token, sha256 {tokenizer['sha256'][:12]}; {came_back if every else 'no text was tried'}.",
        "",
        "Sources: " + ", ".join(f"`{source}`" for source in card["settings"]["sources"]) + ".",
        "",
        *_tags(card["settings"].get("tag_name", [])),
        "## What came in, and what went out",
        "",
        f"{read['documents']:,} documents of {read['characters']:,} characters were read. A document goes at "
        "the first step that removes it; what could not be read as a document at all is listed, too.",
        "",
    ]
    steps = [
        (step["step"], step["documents"], step["characters"], step["examples"]) for step in card["steps"]
    ]
    field = card["settings"]["text_field"]
    rows = [
        (in_words(name, field), n, size, unit_of(name), "; ".join(f"`{where}`" for where in places))
        for name, n, size, places in steps
    ]
    lines += _table(("step", "documents", "size", "unit", "for example"), rows) if rows else ["Nothing.", ""]
    named = {part for name, *_ in steps for part in name.split(".")}
    cited = [text for key, text in CITED.items() if key in named or key in card["settings"]["filters"]]
    lines += [*(f"- {text}" for text in cited), ""] if cited else []
    for kind, title in (("source", "Sources"), ("licence", "Licences"), ("language", "Languages")):
        values = sorted(card["made_of"][kind].items(), key=lambda item: (-item[1][1], item[0]))
        lines += [f"## {title}", ""]
        rows = [(name, *n) for name, n in values[:_MOST_ROWS]]
        lines += _table((kind, "documents", "text bytes", "tokens"), rows)
        if len(values) > _MOST_ROWS:
            lines += [f"and {len(values) - _MOST_ROWS} more, in datacard.json.", ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n".join(lines).rstrip() + "\n"


def _tags(names: list[str]) -> list[str]:
    named = ", ".join(f"{number} `{name}`" for number, name in enumerate(names))
    return [f"Tags of words: {named}.", ""] if names else []


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    def line(cells: tuple[Any, ...]) -> str:
        shown = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(shown) + " |"

    rule = "| " + " | ".join("---" if number == 0 else "---:" for number in range(len(head))) + " |"
    return [line(head), rule, *(line(row) for row in rows), ""]


def _draw(out: Path, made_of: Mapping[str, Mapping[str, list[int]]]) -> list[str]:
    """Draw the histograms; return the files' names."""
    lengths = sorted((int(power), counts) for power, counts in made_of["tokens_log2"].items())
    powers = list(range(max(0, lengths[0][0]), lengths[-1][0] + 1)) if lengths else []
    documents = [dict(lengths).get(power, [0])[0] for power in powers]
    tokens = [dict(lengths).get(power, [0, 0, 0])[2] for power in powers]
    names = [f"{2**power:,}" for power in powers]
    _bars(
        out / LENGTHS_PNG,
        "tokens in a document: from this many up to twice as many",
        names,
        {"documents": documents, "tokens": tokens},
    )
    if set(made_of["language"]) == {"not stated"}:
        return [LENGTHS_PNG]
    languages = sorted(made_of["language"].items(), key=lambda item: (-item[1][1], item[0]))[:_MOST_ROWS]
    counts = {"documents": [n[0] for _, n in languages], "text bytes": [n[1] for _, n in languages]}
    _bars(out / LANGUAGES_PNG, "language", [name for name, _ in languages], counts)
    return [LENGTHS_PNG, LANGUAGES_PNG]


def _bars(path: Path, label: str, names: list[str], series: Mapping[str, list[int]]) -> None:
    """Draw one panel for each series over the same names; without pyplot, which has state of the caller's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, values) in enumerate(series.items()):
        axes = figure.add_subplot(len(series), 1, place + 1)
        axes.bar(range(len(names)), values, color="#3b6ea5")
        axes.set_ylabel(title)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(label)
    # Without the library's version in it the same figures give the same bytes.
    figure.savefig(path, dpi=100, metadata={"Software": None})
