"""The figures that the quickstart sets beside the model's."""

import bz2
import io
import json
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from launch.quickstart import bits_per_byte_compressed, heldout_texts, read_metrics

TEXTS = [b"def f(x):\n    return x\n" * 40, b"import os\n", "# ein Wörterbuch\n".encode()]


def test_each_text_is_compressed_alone_with_its_headers() -> None:
    bits = bits_per_byte_compressed(TEXTS)
    total = sum(map(len, TEXTS))
    assert bits["bzip2 -9"] == 8 * sum(len(bz2.compress(text, 9)) for text in TEXTS) / total
    assert (
        bits["xz -9e"]
        == 8 * sum(len(lzma.compress(t, preset=9 | lzma.PRESET_EXTREME)) for t in TEXTS) / total
    )
    # Compressed as one they would need less: the figures are not those of an archive.
    assert all(bits_per_byte_compressed([b"".join(TEXTS)])[name] < bits[name] for name in bits)


@pytest.mark.parametrize("command", ["gzip -9", "bzip2 -9", "xz -9e"])
def test_the_figures_are_those_of_the_commands(command: str) -> None:
    program, option = command.split()
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    by_command = 0
    for text in TEXTS:
        by_command += len(
            subprocess.run([program, option, "-c"], input=text, capture_output=True, check=True).stdout
        )
    ours = bits_per_byte_compressed(TEXTS)[command] * sum(map(len, TEXTS)) / 8
    assert ours == pytest.approx(by_command, abs=len(TEXTS))


def test_heldout_texts_are_the_files_that_the_shards_name(tmp_path: Path) -> None:
    library, corpus = tmp_path / "lib", tmp_path / "heldout"
    (library / "email").mkdir(parents=True)
    corpus.mkdir()
    for number, (name, text) in enumerate(zip(("a.py", "email/b.py", "c.py"), TEXTS)):
        (library / name).write_bytes(text)
        if name != "c.py":  # on the training side
            with tarfile.open(corpus / f"shard-{number:06d}.tar", "w") as tar:
                for extension, content in (("npy", b"ids"), ("json", json.dumps({"path": name}).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert heldout_texts(corpus, library) == TEXTS[:2]


def test_the_newest_evaluation_counts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    records = [{"step": 1, "loss": 8.3}, {"step": 1, "eval": {"s": {"loss": 8.0, "bits_per_byte": 3.0}}}]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_metrics(metrics) == (records[:1], 3.0)
    records.append({"step": 2, "eval": {"s": {"loss": 4.0, "bits_per_byte": 1.5}}})
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_metrics(metrics)[1] == 1.5
