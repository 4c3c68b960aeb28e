"""Each config in configs/finetune, made small: from a model that was pre-trained; killed and run again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples import corpus_of, example, make_small_corpus, small
from whole_runs import environment, records, tensors, train_here

ROOT = Path(__file__).resolve().parents[3]
KILLER = ROOT / "tests/helpers/programs/killer.py"
FOLDER = ROOT / "configs/finetune"
BASES = {"digits": "masked_images", "proteins": "masked_lm"}
"""Config → the example that it begins from."""


def test_each_config_is_tried() -> None:
    of_tokens = {"tags", "answers", "chats"}  # test_task_examples.py runs these
    assert {path.stem for path in FOLDER.glob("*.yaml")} == BASES.keys() | of_tokens


@pytest.mark.slow  # single methods are killed in fast tests of other files
@pytest.mark.parametrize("name", BASES)
def test_killed_and_run_again_is_bit_identical(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_small_corpus(corpus_of(BASES[name]), tmp_path)
    assert train_here(example(BASES[name]), *small(Path("runs") / BASES[name]))
    config, undisturbed, killed = FOLDER / f"{name}.yaml", tmp_path / "undisturbed", tmp_path / "killed"
    assert train_here(config, *small(undisturbed))
    command = [sys.executable, "-P", str(KILLER), "step", "6", str(config), *small(killed)]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=180, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert train_here(config, *small(killed))
    assert records(killed / "metrics.jsonl") == records(undisturbed / "metrics.jsonl")
    found, expected = tensors(killed), tensors(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
