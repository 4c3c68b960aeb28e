"""A run of each kind of row (partners, views, pairs): killed and run again, exactly once, and traced."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from launch import cli
from whole_runs import WORDS, environment, records, tensors, train_here, write_config

KILLER = Path(__file__).parents[1] / "helpers/programs/killer.py"
STEPS, BATCH = 8, 8
ENCODER = {"kind": "encoder", "layers": 2, "hidden": 32, "heads": 4, "vocab": 288, "window": 0}
SENTENCES = {"kind": "masked_lm", "next_sentence": True}

# name → what a config has besides `whole_runs.write_config`'s.
RUNS: dict[str, dict[str, Any]] = {
    "partners": {
        "model": ENCODER | {"next_sentence": True, "token_types": 2},
        "objective": SENTENCES,
        "data__packing": "one",
        "data__partners": True,
    },
    "views": {
        "model": ENCODER | {"kind": "text_pair"},
        "objective": {"kind": "contrastive"},
        "data__packing": "views",
    },
    "pair": {
        "model": ENCODER | {"kind": "text_pair", "learnt": "scale"},
        "objective": {"kind": "clip"},
        "data__packing": "pair",
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and answers of very uneven lengths."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(1)
    with (folder / "rows.jsonl").open("w") as out:
        for number in range(60):
            texts = [" ".join(draw.choices(WORDS, k=draw.choice((1, 3, 12)))) for _ in range(2)]
            out.write(json.dumps({"text": f"{number} {texts[0]}?", "answer": texts[1]}) + "\n")
    prepare(
        [str(folder / "rows.jsonl")],
        folder / "corpus",
        tokenizer="bytes",
        heldout=0.2,
        workers=1,
        recipe=Recipe(second_field="answer"),
        progress=False,
    )
    return folder / "corpus"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "pair" else pytest.mark.slow) for n in RUNS]
)
def test_killed_and_run_again_is_bit_identical_and_reads_each_sequence_once(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for end in ("killed", "undisturbed"):
        (tmp_path / end).mkdir()
        changes = {"train__steps": STEPS, "train__eval_every": 4, "train__global_batch": BATCH}
        config = write_config(tmp_path / end, corpus, **(changes | RUNS[name]))
        if end == "killed":
            command = [sys.executable, str(KILLER), "step", "7", str(config)]
            done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
            assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
        assert train_here(config)
        folders.append(tmp_path / end / "run")
    for file in ("metrics.jsonl", "ledger.jsonl"):
        assert records(folders[0] / file) == records(folders[1] / file)
    killed, undisturbed = map(tensors, folders)
    assert all(torch.equal(killed[key], undisturbed[key]) for key in undisturbed)
    read = [number for line in records(folders[0] / "ledger.jsonl") for number in line["sequences"]]
    assert read == list(range(STEPS * BATCH))
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(folders[0]), "--sequence", "13", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == [2, 2] and all(piece["text"] for piece in found["pieces"])
    assert len(found["pieces"]) == (1 if name == "partners" else 2)
    assert ("partner" in found) == (name == "partners")
