"""Which files a list of SOURCE arguments names, and what each of them holds."""

import fnmatch
import glob
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from braceexpand import braceexpand

from data.opening import open_bytes, store_options
from data.prepare.recipe import Recipe
from data.prepare.sources import folders_of_datasets
from data.prepare.sources.decoding import open_text
from data.prepare.sources.looks import BOM, HEAD, binary_format, is_plain_text, json_shape, squad_array

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".bin": "ids",
    ".npy": "ids",
    ".csv": "csv",
    ".tsv": "tsv",
    ".fasta": "fasta",
    ".fa": "fasta",
    ".faa": "fasta",
    ".fna": "fasta",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"), "image"),
}
# Kinds that are read from beginning to end, and so may be compressed.
STREAMS = ("text", "jsonl", "json", "csv", "tsv", "fasta", "conll")
STANDARD_INPUT = "-"


class TokenIds(NamedTuple):
    """The given tokenizer: its number of ids, the id that ends a document and the text of that, the texts of
    all its special tokens, and the text of the id that its template begins a text with.
    """

    vocab: int
    separator: int
    separator_text: str = ""
    special: tuple[str, ...] = ()
    beginning_text: str = ""


@dataclass(frozen=True)
class InputFile:
    """One file of a source.

    source: the source's name in the corpus.
    path: a local path or a URL; opens the file.
    relative: the path below the source, which the corpus keeps.
    kind: what the file holds, a key of `data.prepare.readers.dispatch.READERS`.
    bytes: its size.
    changed_ns: when it was last written to, in ns; 0 for a remote file.
    tokens: the tokenizer of token ids that the file may hold; None where none is given.
    """

    source: str
    path: str
    relative: str
    kind: str
    bytes: int
    changed_ns: int = 0
    tokens: TokenIds | None = None


def expand(specs: list[str], recipe: Recipe, stdin_file: str = "", out: str = "") -> list[InputFile]:
    """The files of all sources, in an order that depends on names alone.

    specs: folders, files, globs, brace ranges, `@list` files, URLs, and `-` for `stdin_file`.
    recipe: what to include, and how to tell a file's kind.
    stdin_file: the file that holds standard input.
    out: the folder that is being made; what it holds is no source.

    Raises ValueError for a source that is not there or holds nothing; RuntimeError where a store fails.
    """
    if not specs:
        raise ValueError("no source: name at least one folder, file, glob or URL to prepare")
    files: list[InputFile] = []
    for spec in specs:
        found = list(_files_of(spec, recipe, stdin_file, out))
        if not found:
            raise ValueError(
                f"source {spec} holds no file to read (include={recipe.include}, exclude={recipe.exclude})"
            )
        files += found
    return files


def _files_of(spec: str, recipe: Recipe, stdin_file: str, out: str) -> Iterator[InputFile]:
    if spec == STANDARD_INPUT:
        kind = _by_content(stdin_file, "jsonl", recipe) if recipe.format == "auto" else recipe.format
        yield InputFile("stdin", stdin_file, "stdin", kind, os.path.getsize(stdin_file))
        return
    if spec.startswith("@"):
        if not os.path.isfile(spec[1:]):
            raise ValueError(f"source list {spec[1:]} is not there")
        with open(spec[1:], "rb") as lines:  # names of files need not be UTF-8
            for line in lines:
                if name := os.fsdecode(line.removeprefix(BOM).strip()):
                    yield from _files_of(name, recipe, stdin_file, out)
        return
    for path in braceexpand(spec):
        if "://" in path:
            yield from _remote(path, recipe)
        elif os.path.isdir(path):
            yield from _folder(path, recipe, out)
        elif os.path.isfile(path):
            if not folders_of_datasets.documents(os.path.dirname(path), [os.path.basename(path)]):
                raise ValueError(
                    f"source {path} is none of the data of the dataset that is saved there: name the folder "
                    f"{os.path.dirname(path) or '.'}"
                )
            yield _local(path, os.path.basename(path), _stem(path), recipe)
        elif glob.has_magic(path):
            yield from _glob(path, recipe)
        else:
            raise ValueError(f"source {path} is not there: give a folder, a file, a glob or a URL")


def _glob(pattern: str, recipe: Recipe) -> Iterator[InputFile]:
    root = os.path.dirname(pattern[: re.search(r"[*?\[]", pattern).start()])  # type: ignore[union-attr]
    found = sorted(glob.glob(pattern, recursive=True))
    for parent, paths in itertools.groupby(found, os.path.dirname):
        for name in folders_of_datasets.documents(parent, [os.path.basename(path) for path in paths]):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, root or ".")
            if chosen(relative, recipe) and _is_file(path):
                yield _local(path, relative, os.path.basename(root) or "files", recipe)


def _folder(folder: str, recipe: Recipe, out: str) -> Iterator[InputFile]:
    name = os.path.basename(os.path.abspath(folder))
    if out and os.path.exists(out) and os.path.samefile(folder, out):
        raise ValueError(f"source {folder} is --out itself: give the corpus a folder of its own")
    paths = folders_of_datasets.documents_below(folder, out)
    for path in sorted(paths, key=lambda path: PurePosixPath(path).parts):
        relative = os.path.relpath(path, folder)
        if chosen(relative, recipe) and _is_file(path):
            yield _local(path, relative, name, recipe)


def _is_file(path: str) -> bool:
    if not os.path.exists(path):
        raise ValueError(f"source {path} is a link to nothing: restore it, or leave it out with --exclude")
    return os.path.isfile(path)


def chosen(relative: str, recipe: Recipe) -> bool:
    """Do `include` and `exclude` let this path in?"""
    if recipe.include and not matches(relative, recipe.include):
        return False
    return not matches(relative, recipe.exclude)


def matches(relative: str, patterns: list[str]) -> bool:
    """Does the path, or for a pattern without "/" any part of it, match one of the glob patterns?"""
    parts = PurePosixPath(relative).parts
    return any(
        fnmatch.fnmatchcase(relative, pattern)
        or ("/" not in pattern and any(fnmatch.fnmatchcase(part, pattern) for part in parts))
        for pattern in patterns
    )


def _stem(path: str) -> str:
    return os.path.basename(path).split(".")[0] or "file"


def _local(path: str, relative: str, source: str, recipe: Recipe) -> InputFile:
    status = os.stat(path)
    kind = kind_of(path, recipe)
    if recipe.format == "auto":
        kind = _by_content(path, kind, recipe)
    return InputFile(as_text(source), path, as_text(relative), kind, status.st_size, status.st_mtime_ns)


def as_text(name: str) -> str:
    """A file's name as text, for the corpus: what is not UTF-8 becomes U+FFFD. `path` keeps the true name."""
    return os.fsencode(name).decode("utf-8", "replace")


def _by_content(path: str, kind: str, recipe: Recipe) -> str:
    """The kind of a local file, where its name leaves it open: .json may be an array, lines or any text,
    .jsonl an array, and .bin a text. A file that cannot be read keeps `kind`: its reader will raise.
    """
    if kind not in ("json", "jsonl", "ids") or _suffix(path) == ".npy":
        return kind
    try:
        if kind == "ids":
            with open_bytes(path) as stream:
                head = stream.read(HEAD).removeprefix(BOM)
            return "text" if is_plain_text(head) or binary_format(head) else kind
        stream, head = open_text(path, recipe)
        with stream:
            if kind == "json":
                if recipe.task == "answers" and squad_array(head.removeprefix(BOM)):
                    return kind
                shape = json_shape(stream, recipe.text_field, recipe.row_bytes)
                return {"array": "json", "lines": "jsonl"}.get(shape, "text")
        return "json" if re.match(rb"\s*\[\s*({|\n)", head.removeprefix(BOM)) else kind
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return kind


def _remote(url: str, recipe: Recipe) -> Iterator[InputFile]:
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(url, **store_options(url))
        names = sorted(filesystem.glob(path)) if glob.has_magic(path) else [path]
        above = re.split(r"[*?\[]", path.rstrip("/"))[0].rpartition("/")[0]
        if names == [path] and not is_http(url) and filesystem.isdir(path):
            names, above = sorted(filesystem.find(path)), path.rstrip("/")
        for name in names:
            relative = name.removeprefix(f"{above}/")
            if chosen(relative, recipe):
                size = int(filesystem.info(name).get("size") or 0)
                kind = kind_of(relative, recipe)
                yield InputFile(_stem(path), filesystem.unstrip_protocol(name), relative, kind, size)
    except (ImportError, ValueError, FileNotFoundError) as error:
        raise ValueError(_unreached(url, error)) from None
    except Exception as error:  # each store has its own exceptions, botocore's no OSError among them
        raise RuntimeError(_unreached(url, error)) from None


def _unreached(url: str, error: Exception) -> str:
    return f"source {url} cannot be reached: {type(error).__name__}: {' '.join(str(error).split())}"


def is_http(url: str) -> bool:
    """Is this the URL of a web server? It has no folders and may send no ranges; object stores have both."""
    return url.startswith(("http://", "https://"))


def kind_of(path: str, recipe: Recipe) -> str:
    """The kind of a file by its name, without a suffix of compression; for tags of words, files of text and
    TSV have columns, whatever their names.
    """
    if recipe.format != "auto":
        return recipe.format
    kind = SUFFIXES.get(_suffix(path), "text")
    return "conll" if recipe.task == "tags" and kind in ("text", "tsv") else kind


def _suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path.lower().split("?")[0])
    return os.path.splitext(stem)[1] if suffix in COMPRESSED else suffix
