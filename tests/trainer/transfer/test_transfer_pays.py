"""`germinal transfer` on handwritten digits, killed on the way: pre-training wins, with each method."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from data.prepare.prepare import prepare
from whole_runs import GERMINAL, environment, germinal

CONFIG = Path(__file__).resolve().parents[3] / "configs/transfer/images.yaml"
FEWER = (
    *("labels=[32]", "seeds=3", "validation=64", "rates={full: [2e-3], probe: [2e-2], lora: [5e-3]}"),
    *("pretrain.train.steps=300", "pretrain.train.eval_every=0", "finetune.train.steps=50"),
)


@pytest.mark.slow
def test_pretraining_pays_for_few_labels_with_each_method(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="its digits are handwriting")
    prepare(["embedded:digits"], tmp_path / "corpora/digits", workers=1, progress=False)
    command = [GERMINAL, "transfer", str(CONFIG), *FEWER, "--workers", "1"]
    trials = tmp_path / "runs/transfer_images/trials"
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True) as process:
        while process.poll() is None and len(list(trials.glob("*.json"))) < 5:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    before = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert 5 <= len(before) < 18
    done = germinal(*command[1:], cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert len(after) == 18 and {name: after[name] for name in before} == before
    document = json.loads((tmp_path / "runs/transfer_images/transfer.json").read_text())
    verdicts = {row["method"]: row["to_random"]["verdict"] for row in document["rows"]}
    assert verdicts == {"full": "wins", "probe": "wins", "lora": "wins"}, done.stdout
