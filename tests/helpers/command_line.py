"""Commands in this process and in processes of their own."""

import os

import pytest

from launch import cli

ASCII = {
    **os.environ,
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}
"""Environment of a terminal that knows ASCII only."""


def failure(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that fails: one line on standard error and nothing else."""
    code = cli.main(arguments)
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return code, err
