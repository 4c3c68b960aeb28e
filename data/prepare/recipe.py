"""The settings of `germinal prepare` besides sources, folder and tokenizer. Imports nothing heavy."""

import codecs
import dataclasses
import re
from dataclasses import dataclass, field, replace
from typing import Any

FORMATS = (
    "auto",
    "text",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "fasta",
    "conll",
    "parquet",
    "arrow",
    "ids",
    "webdataset",
    "image",
)
IDS_DTYPES = ("auto", "uint16", "uint32", "int32", "int64")
FILTERS = ("c4", "gopher_quality", "gopher_repetition")
TASKS = ("", "tags", "answers", "chat")
# Task → the fields that its records usually have.
TASK_FIELDS = {
    "tags": {"text_field": "tokens", "label_field": "ner_tags"},
    "answers": {"text_field": "context", "second_field": "question", "label_field": "answers"},
    "chat": {"text_field": "messages"},
}
NORMAL_FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")


@dataclass
class Recipe:
    """The settings of `prepare`, each with its default. A cleaning step is off unless asked for; what a step
    leaves out or changes is counted and reported.

    Reading:
    format: kind of all files; "auto" decides for each file, by its name and first bytes.
    text_field: column or key of the text; "doc.body" is the field `body` in the field `doc`.
    second_field: column or key of a second text, for pairs such as question and answer; "" for none. A row
        without one is left out.
    label_field: column or key of the document's class, a text or a number; "" for none.
    image_field: column of the document's picture: the bytes of its file, or `bytes` and `path` as Hugging
        Face's datasets store them; "" for none. The text may then be missing.
    label_folder: the folder whose name is the class: 1 for the first below the source, 2 for the next, -1 for
        the one that the file is in; 0 for none.
    ids_field: column or key of token ids, for a row without a text.
    ids_dtype: type of the numbers in a `.bin` of token ids, or "auto".
    task: make documents whose tokens have marks, for fine-tuning; see `data.prepare.tasks`. "tags": words and
        a tag each (`text_field` tokens, `label_field` ner_tags; in files of columns their numbers, 1 for the
        first and -1 for the last). "answers": a question, a context and its
        answers (`second_field` question, `text_field` context, `label_field` answers). "chat": messages
        (`text_field` messages), or a prompt and, as `second_field`, its answer. "" for none.
    window_tokens: a question whose context is longer than a row of so many tokens (`data.seq_len`) becomes
        several documents, each with a part of the context; 0: one, however long.
    window_overlap: tokens of the context that two such parts share; less where a row has no room for them.
    tag_name: the names of the tags, in the order of their numbers; empty: those that the schema of a table
        states, or all that are in the files of columns, "O" first, the others in alphabetical order.
    chat_template: file with the Jinja template of a chat, or "chatml".
    licence_field: column, key or folder (`license=MIT/`) with the licence, which is kept with the document.
    language_field: the same for the language.
    include: glob patterns; only files that match are read. A pattern is held against the path below the
        source; one without "/" against any part of the path.
    exclude: glob patterns; files that match are not read.
    merge_splits: read the splits of one data set (train, test, …) as one?
    encoding: of text and of rows of text, where no byte order mark states another.
    undecodable: what is not UTF-8. "repair": read as Windows-1252, or as UTF-8 with U+FFFD where it is UTF-8
        for the most part. "skip": left out, as is always done where another encoding is named.
    split_lines: make one document of each line of a text file, which is one document otherwise?
    split_at: make one document of the text between two occurrences of this text (`\\n` is an end of a line,
        `\\t` a tab).
    split_characters: make one document of every so many characters, cut where a line ends; 0: do not.
    max_document_bytes: a file that is a longer document is refused; longer rows and parts are left out.

    Cleaning, in this order:
    licences: keep documents of these licences; empty: all.
    fix_encoding: mend text that was decoded wrongly (ftfy)?
    normal_form: Unicode normal form; "" for none.
    min_characters, max_characters: leave out shorter and longer documents; 0 for no limit.
    filters: quality rules, of `FILTERS`.
    language_hook: "module:function", text → language code.
    languages: keep documents of these languages; empty: all.
    scrub_hook: "module:function", text → text, such as "data.scrub:contacts".
    decontaminate: evaluation files; a document that shares a run of words with one is left out.
    decontaminate_words: the length of such a run.
    deduplicate: "exact", "near" or "".
    near_threshold: Jaccard similarity of word 5-grams from which two documents are near duplicates.

    Held out:
    heldout_by: by hash of the "document" or of its "file"; by "position", the end of every file, which is
        chosen for a single text that is one document.
    heldout_match: glob patterns; hold out exactly the files that match.

    Tokenizer:
    train_kind: "bpe", "wordpiece" or "characters", for a tokenizer that is trained.
    train_bytes: text to train on, spread over the corpus.
    separator: the token between documents, of a loaded tokenizer; "" to find it by its usual names.
    template: tokens that a loaded tokenizer puts around a text: "keep" or "drop".

    Output:
    shard_bytes: text in a shard.
    block_documents: documents in a block, the unit that training shuffles.
    """

    format: str = "auto"
    text_field: str = "text"
    second_field: str = ""
    label_field: str = ""
    image_field: str = ""
    label_folder: int = 0
    ids_field: str = "input_ids"
    ids_dtype: str = "auto"
    task: str = ""
    window_tokens: int = 0
    window_overlap: int = 128
    tag_name: list[str] = field(default_factory=list)
    chat_template: str = "chatml"
    licence_field: str = "license"
    language_field: str = "language"
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    merge_splits: bool = False
    encoding: str = "utf-8"
    undecodable: str = "repair"
    split_lines: bool = False
    split_at: str = ""
    split_characters: int = 0
    max_document_bytes: int = 16 << 20

    fix_encoding: bool = False
    normal_form: str = ""
    min_characters: int = 0
    max_characters: int = 0
    filters: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)  # looked at first; here, as every manifest lists it
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
    template: str = "keep"

    shard_bytes: int = 128 << 20
    block_documents: int = 4096

    @property
    def is_splitting(self) -> bool:
        """Is a text file split into several documents?"""
        return bool(self.split_lines or self.split_at or self.split_characters)

    @property
    def named_encoding(self) -> str:
        """The encoding if it is not UTF-8, else "". UTF-16 without a byte order mark is little-endian."""
        name = codecs.lookup(self.encoding).name
        return {"utf-8": "", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(name, name)

    @property
    def row_bytes(self) -> int:
        """The longest row of a file, in bytes. JSON may be three times as long as its text in UTF-8, and some
        more: a letter of two bytes takes six where it is escaped.
        """
        return 3 * self.max_document_bytes + (1 << 20)

    @property
    def separator_bytes(self) -> bytes:
        """`split_at` as bytes, without escapes."""
        escapes = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
        return re.sub(r"\\[ntr\\]", lambda found: escapes[found[0]], self.split_at).encode()


def for_task(recipe: Recipe) -> Recipe:
    """The recipe with the usual fields of its task where none are named."""
    usual = TASK_FIELDS.get(recipe.task, {})
    named: dict[str, Any] = {
        key: name for key, name in usual.items() if getattr(recipe, key) == getattr(Recipe, key)
    }
    return replace(recipe, **named)


def check(recipe: Recipe) -> None:
    """Raise ValueError, one line, for a setting that is not possible, or contradicts another."""
    for key, value, allowed in (
        ("format", recipe.format, FORMATS),
        ("normal_form", recipe.normal_form, NORMAL_FORMS),
        ("undecodable", recipe.undecodable, ("repair", "skip")),
        ("deduplicate", recipe.deduplicate, ("", "exact", "near")),
        ("heldout_by", recipe.heldout_by, ("document", "file", "position")),
        ("ids_dtype", recipe.ids_dtype, IDS_DTYPES),
        ("task", recipe.task, TASKS),
        ("template", recipe.template, ("keep", "drop")),
        ("train_kind", recipe.train_kind, ("bpe", "wordpiece", "characters")),
    ):
        if value not in allowed:
            named = ", ".join(name or "(empty)" for name in allowed)
            raise ValueError(f"{option(key)} {value!r} is none of {named}")
    try:
        "x".encode(recipe.encoding)
        codecs.getincrementaldecoder(recipe.encoding)("backslashreplace").decode(b"", True)
    except (LookupError, ValueError):
        raise ValueError(
            f"--encoding {recipe.encoding!r} is no encoding of text: utf-8, windows-1252, utf-16, shift_jis, "
            "gb18030 and koi8-r are some"
        ) from None
    for name in recipe.filters:
        if name not in FILTERS:
            raise ValueError(f"--filters {name!r} is none of {', '.join(FILTERS)}")
    for key, least in (
        ("max_document_bytes", 1024),
        ("shard_bytes", 1024),
        ("block_documents", 1),
        ("train_bytes", 1),
        ("decontaminate_words", 1),
        ("min_characters", 0),
        ("max_characters", 0),
        ("split_characters", 0),
        ("window_tokens", 0),
        ("window_overlap", 0),
    ):
        if getattr(recipe, key) < least:
            raise ValueError(f"{option(key)} {getattr(recipe, key)} is too small: at least {least}")
    if sum(map(bool, (recipe.split_lines, recipe.split_at, recipe.split_characters))) > 1:
        raise ValueError(
            "a file is split in one way: give one of --split-lines, --split-at and --split-characters"
        )
    if recipe.split_characters * 4 > recipe.max_document_bytes:
        raise ValueError(
            f"--split-characters {recipe.split_characters} may be {recipe.split_characters * 4} bytes, and "
            f"--max-document-bytes is {recipe.max_document_bytes}: lower the one or raise the other"
        )
    if not 0 < recipe.near_threshold <= 1:
        raise ValueError(f"--near-threshold {recipe.near_threshold} is not a similarity: give one in (0, 1]")
    _check_fields(recipe)


def _check_fields(recipe: Recipe) -> None:
    """Raise ValueError where two settings name the same thing, or one that another needs is missing."""
    if recipe.window_tokens and recipe.task != "answers":
        raise ValueError(
            f"--window-tokens {recipe.window_tokens} cuts contexts of questions: give --task answers with it"
        )
    if recipe.image_field and recipe.second_field:
        raise ValueError(
            f"--image-field {recipe.image_field!r} and --second-field {recipe.second_field!r}: a document is "
            "a picture with a text, or a pair of texts: give one of the two"
        )
    if recipe.label_field and recipe.label_folder:
        raise ValueError(
            f"--label-field {recipe.label_field!r} and --label-folder {recipe.label_folder}: give one of the "
            "two, from which the classes are taken"
        )
    if recipe.languages and not (recipe.language_hook or recipe.language_field):
        raise ValueError(
            "--languages is given, but neither --language-hook nor --language-field says what a text's is"
        )


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """`--option: old → new` for every setting that differs."""
    keys = sorted(old.keys() | new.keys())
    return [
        f"{_NO_OPTIONS.get(key) or option(key)}: {_given(old.get(key))} → {_given(new.get(key))}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def option(key: str) -> str:
    """A setting's name as it is typed: "text_field" → "--text-field"."""
    return "--" + key.replace("_", "-")


_NO_OPTIONS = {"sources": "SOURCE", "tokenizer_sha256": "SHA-256 of the tokenizer"}


def _given(value: object) -> str:
    """A setting's value as it is typed."""
    if value is True:
        return "given"
    if value is False or value is None or value in ("", []):
        return "not given"
    return " ".join(map(repr, value)) if isinstance(value, list) else repr(value)


def as_dict(recipe: Recipe) -> dict[str, object]:
    """The settings as JSON, for the record of the command and the manifest."""
    return dataclasses.asdict(recipe)
