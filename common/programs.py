"""Runs another program to its end, in a bounded time."""

import subprocess
from collections.abc import Mapping, Sequence


def run(
    words: Sequence[str], *, seconds: float, environ: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program that gets no input; return its exit code and what it printed, as text.

    OSError where it cannot be run, such as FileNotFoundError where there is no such program. TimeoutError,
    with one line, where it is not done after `seconds`; it is killed then.
    """
    try:
        return subprocess.run(
            words,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{words[0]} did not answer within {seconds:g} s") from None


def output_of(
    words: Sequence[str], *, seconds: float = 15.0, environ: Mapping[str, str] | None = None
) -> str | None:
    """Return what a program prints on standard output; None where it is not installed.

    Raises:
        RuntimeError: it failed; the message is its last line.
        TimeoutError: it was not done after `seconds`.
    """
    try:
        done = run(words, seconds=seconds, environ=environ)
    except (FileNotFoundError, PermissionError):
        return None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()  # nvidia-smi prints its errors on standard output
        lines = said.splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{words[0]}: {lines[-1].strip()}")
    return done.stdout
