"""`germinal transfer` in the three modalities, killed on the way: pre-training wins, with each method."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from data.prepare.prepare import prepare
from whole_runs import GERMINAL, environment, germinal

CONFIGS = Path(__file__).resolve().parents[3] / "configs/transfer"
FEWER = ("labels=[32]", "rates={full: [1e-3], probe: [1e-2], lora: [1e-2]}", "pretrain.train.threads=1")
TRIALS = 3 * 2 * 5


@pytest.mark.slow
@pytest.mark.timeout(2400)  # longer than the command below may take
@pytest.mark.parametrize(
    ("corpus", "modality"), [("digits", "images"), ("packages", "text"), ("bytecode", "sequences")]
)
def test_pretraining_pays_for_few_labels_with_each_method(tmp_path: Path, corpus: str, modality: str) -> None:
    """One number of labels of the tables in docs/guides/transfer.md: five seeds, one rate for each method."""
    if corpus == "digits":
        pytest.importorskip("sklearn", reason="its digits are handwriting")
    prepare([f"embedded:{corpus}"], tmp_path / "corpora" / corpus, workers=1, progress=False)
    command = [GERMINAL, "transfer", str(CONFIGS / f"{modality}.yaml"), *FEWER, "--workers", "1"]
    folder = tmp_path / "runs" / f"transfer_{modality}"
    trials = folder / "trials"
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True) as process:
        while process.poll() is None and len(list(trials.glob("*.json"))) < 5:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    before = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert 5 <= len(before) < TRIALS
    done = germinal(*command[1:], cwd=tmp_path, timeout=1800)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert len(after) == TRIALS and {name: after[name] for name in before} == before
    document = json.loads((folder / "transfer.json").read_text())
    verdicts = {row["method"]: row["to_random"]["verdict"] for row in document["rows"]}
    assert verdicts == {"full": "wins", "probe": "wins", "lora": "wins"}, done.stdout
