"""Runs a program and returns what it printed."""

import subprocess
from collections.abc import Mapping, Sequence


def output_of(
    argv: Sequence[str], *, seconds: float = 15.0, environ: Mapping[str, str] | None = None
) -> str | None:
    """What the program printed on standard output; None where it is not installed.

    Raises:
        RuntimeError: it failed; the message is its last line.
        TimeoutError: it was not done after `seconds`.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environ,
        )
    except (FileNotFoundError, PermissionError):
        return None
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{argv[0]} did not answer within {seconds:g} s") from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{argv[0]}: {lines[-1].strip()}")
    return done.stdout
