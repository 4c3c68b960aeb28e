"""`--array key=v1,v2`: one run for each value, or for each combination where it is given several times.

Each element is a run of its own, with a name, a run folder and a job of its own, rather than a task of one
SLURM job array: it is shown, requeued, cancelled and continued by its own name like every other run, a chain
or a time limit concerns it alone, and `squeue` shows which run a job is. What a job array offers besides, a
bound on how many run at a time, is `--at-once`.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 1000  # elements: a slip such as seed=0..1e6 must not fill the queue of a cluster
_NAME_LETTERS = 60  # of what an element adds to the run's name


@dataclass(frozen=True)
class Element:
    """One run of an array.

    suffix: what its name has besides the array's; "" where there is no array.
    overrides: key=value that make it.
    """

    suffix: str
    overrides: tuple[str, ...]


def elements(arrays: Sequence[str]) -> list[Element]:
    """Return the elements of the grid that `--array` describes; a single one without an array.

    Raises:
        ValueError: not key=v1,v2; a key or a value that is there twice; too many.
    """
    axes = [_axis(text) for text in arrays]
    for key in {key for key, _ in axes}:
        if sum(key == other for other, _ in axes) > 1:
            raise ValueError(f"--array {key}=…: given twice: write all its values after one, with commas")
        if key in ("name", "run_dir"):
            raise ValueError(f"--array {key}=…: each element gets a name and a run folder of its own anyway")
    count = 1
    for _, values in axes:
        count *= len(values)
    if count > MOST:
        raise ValueError(f"--array: {count:,} runs, more than {MOST:,}: submit fewer at a time")
    grid = list(itertools.product(*(values for _, values in axes)))
    suffixes = [_suffix([key for key, _ in axes], values) for values in grid]
    if len(set(suffixes)) < len(suffixes):  # values that differ in letters that a name cannot have
        suffixes = [f"{index}-{suffix}" for index, suffix in enumerate(suffixes)]
    return [
        Element(suffix, tuple(f"{key}={value}" for (key, _), value in zip(axes, values)))
        for suffix, values in zip(suffixes, grid)
    ]


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    values = _split(rest)
    if not equals or not key or not all(values):
        raise ValueError(f"--array {text!r}: not key=v1,v2: write such as optim.lr=1e-3,3e-3")
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"--array {key}=…: the value {value!r} is there twice")
    return key, values


def _split(text: str) -> list[str]:
    """Split at commas that are outside of brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _suffix(keys: Sequence[str], values: Sequence[str]) -> str:
    """Return `lr0.003-seed1` for optim.lr=0.003 and seed=1, in letters that a folder's name may have."""
    parts = [f"{key.rpartition('.')[2]}{value}" for key, value in zip(keys, values)]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))
    return plain.strip("_")[:_NAME_LETTERS]
