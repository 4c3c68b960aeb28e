"""Another program's output, or one line on why there is none."""

import sys

import pytest

from common.programs import output_of, run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_program_prints_comes_back_though_it_is_no_text() -> None:
    done = run(python(r"import os; os.write(1, b'a\xff'); os.write(2, b'b'); exit(3)"), seconds=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, r"a\xff", "b")


def test_it_gets_no_input_and_the_given_environment() -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), os.environ.get('HERE'))"
    assert output_of(python(code), environ={"HERE": "1"}) == "'' 1\n"


def test_a_program_that_does_not_end_is_one_line() -> None:
    with pytest.raises(TimeoutError, match=r"^sleep did not answer within 0\.1 s$"):
        run(["sleep", "60"], seconds=0.1)


def test_no_program_and_a_failure_differ() -> None:
    assert output_of(["no-such-program-here"]) is None
    with pytest.raises(RuntimeError, match=r"^sh: the cause$"):
        output_of(["sh", "-c", "echo before; echo the cause >&2; exit 1"])
    with pytest.raises(RuntimeError, match=r"^false: exit code 1$"):
        output_of(["false"])
