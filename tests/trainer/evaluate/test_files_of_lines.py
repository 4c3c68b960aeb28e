"""Files of lines: every reader of them refuses what is no text in one line, with the file and the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluate import images
from trainer.evaluate.choices import read_questions
from trainer.evaluation.bias import read_pairs
from trainer.generate.text import read_prompts

# Each reader, with a line that it takes; X stands where a text is.
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "choices": (read_questions, '{"context": "X", "choices": ["b", "c"], "answer": 0}'),
    "bias": (read_pairs, '{"sentences": ["X", "other"]}'),
    "prompts": (read_prompts, '{"prompt": "X"}'),
    "captions": (lambda path: images.read_prompts(path, ["cat"]), '{"class": "cat", "prompts": ["X"]}'),
}
WRONG = {
    "half of a pair": ("\\ud83d", "half of a surrogate pair"),
    "deep": (("[" * 100_000), "line 2: nested too deeply"),
    "long number": ("9" * 5000, "line 2: "),
    "cut": ('{"context": "x', "line 2: column"),
}


@pytest.mark.parametrize("reader", READERS)
def test_marks_and_ends_of_lines_inside_a_text_are_kept(reader: str, tmp_path: Path) -> None:
    read, line = READERS[reader]
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.write_text(line + "\n" + line.replace("X", "Y"))
    text = line.replace("X", "a\u2028b\x85c") + "\r\n" + line.replace("X", "\\ud83d\\ude00")
    other.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read(other)) == len(read(plain))
    shown = str(read(other))
    assert "a\\u2028b\\x85c" in shown and "\N{GRINNING FACE}" in shown


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_text_is_one_line(reader: str, wrong: str, tmp_path: Path) -> None:
    read, line = READERS[reader]
    content, message = WRONG[wrong]
    if wrong == "half of a pair":
        content = line.replace("X", content)
    elif reader == "prompts" and wrong != "cut":
        content = f'{{"prompt": {content}}}'  # another line is a prompt as it stands
    (file := tmp_path / "lines").write_text(f"{line}\n{content}\n")
    with pytest.raises(ValueError, match=r"^[^\n]{1,400}$") as caught:
        read(file)
    assert message in str(caught.value) and f"{file}, line 2: " in str(caught.value)
    file.write_bytes(line.encode("utf-16"))
    with pytest.raises(ValueError, match="cannot be read as text"):
        read(file)
