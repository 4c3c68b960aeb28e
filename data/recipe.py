"""What `germinal prepare` is asked to do besides the sources, the folder and the tokenizer. Imports nothing
heavy.
"""

import dataclasses
from dataclasses import dataclass, field

FORMATS = ("auto", "text", "jsonl", "csv", "tsv", "fasta", "parquet", "arrow", "webdataset", "image")
FILTERS = ("c4", "gopher_quality", "gopher_repetition")
NORMAL_FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")


@dataclass
class Recipe:
    """Every step is off unless asked for; what a step takes out or changes is counted and reported.

    Reading: `format` "auto" goes by the file's name. `text_field`: column or key of the text;
    `licence_field` and `language_field` are kept with the document where they are there. `include`,
    `exclude`: glob patterns over the path below the source (a pattern without "/" matches any part of it).
    `undecodable`: "repair" reads what is not UTF-8 as Windows-1252, "skip" leaves it out. A longer document
    than `max_document_bytes` is cut where a line ends.

    Cleaning, in this order: `fix_encoding` (ftfy), `normal_form`, `min_characters`/`max_characters`,
    `filters`, `licences` (kept; empty: all), `language_hook` ("module:function", text → code) with
    `languages` (kept; empty: all), `scrub_hook` ("module:function", text → text; "data.scrub:contacts" is
    at hand), `decontaminate` (evaluation files; a document that shares a run of `decontaminate_words` words
    with one goes), `deduplicate` ("exact", or "near" with `near_threshold` as the Jaccard similarity of
    word 5-grams).

    Held out: by hash of the "document" or of its "file" (`heldout_by`), or exactly what `heldout_match`
    (globs) matches. Tokenizer: `train_kind`, `train_bytes` (of text to train on, spread over the corpus),
    `separator` (of a loaded tokenizer). Output: `shard_bytes` of text a shard, `block_documents` (the unit
    that training shuffles).
    """

    format: str = "auto"
    text_field: str = "text"
    licence_field: str = "license"
    language_field: str = "language"
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    undecodable: str = "repair"
    max_document_bytes: int = 16 << 20

    fix_encoding: bool = False
    normal_form: str = ""
    min_characters: int = 0
    max_characters: int = 0
    filters: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    language_hook: str = ""
    languages: list[str] = field(default_factory=list)
    scrub_hook: str = ""
    decontaminate: list[str] = field(default_factory=list)
    decontaminate_words: int = 13
    deduplicate: str = ""
    near_threshold: float = 0.8

    heldout_by: str = "document"
    heldout_match: list[str] = field(default_factory=list)

    train_kind: str = "bpe"
    train_bytes: int = 256 << 20
    separator: str = ""

    shard_bytes: int = 128 << 20
    block_documents: int = 4096


def check(recipe: Recipe) -> None:
    """Raises ValueError, one line, for a value that means nothing."""
    for key, value, allowed in (
        ("format", recipe.format, FORMATS),
        ("normal_form", recipe.normal_form, NORMAL_FORMS),
        ("undecodable", recipe.undecodable, ("repair", "skip")),
        ("deduplicate", recipe.deduplicate, ("", "exact", "near")),
        ("heldout_by", recipe.heldout_by, ("document", "file")),
        ("train_kind", recipe.train_kind, ("bpe", "wordpiece", "characters")),
    ):
        if value not in allowed:
            raise ValueError(f"{key}={value!r} is none of {', '.join(name or '(empty)' for name in allowed)}")
    for name in recipe.filters:
        if name not in FILTERS:
            raise ValueError(f"filters: {name!r} is none of {', '.join(FILTERS)}")
    for key, least in (
        ("max_document_bytes", 1024),
        ("shard_bytes", 1024),
        ("block_documents", 1),
        ("train_bytes", 1),
        ("decontaminate_words", 1),
        ("min_characters", 0),
        ("max_characters", 0),
    ):
        if getattr(recipe, key) < least:
            raise ValueError(f"{key}={getattr(recipe, key)} is too small: at least {least}")
    if not 0 < recipe.near_threshold <= 1:
        raise ValueError(f"near_threshold={recipe.near_threshold} is not a similarity: give one in (0, 1]")
    if recipe.languages and not (recipe.language_hook or recipe.language_field):
        raise ValueError(
            "languages is given, but neither language_hook nor language_field says what a text's is"
        )


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """`key: old → new` of every setting that changed."""
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def as_dict(recipe: Recipe) -> dict[str, object]:
    """For the plan file and the manifest."""
    return dataclasses.asdict(recipe)
