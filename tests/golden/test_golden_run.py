"""A run that version 0.1 began, with its corpus, is gone on with by every later version.

run-0.1.tar.gz holds `corpus/` and `run/`: four steps on two tensor-parallel ranks. EXPECTED is what that
version made of steps 5 to 8 on one process. A change of the checkpoint format, of a corpus's fingerprint or
of the order of the data fails here: it needs a new version number, and a reader of the old format.
"""

import json
import shutil
from pathlib import Path

import pytest

import whole_runs

GOLDEN = Path(__file__).with_name("run-0.1.tar.gz")
# step → (loss, gradient norm)
EXPECTED = {
    5: (5.548731982707977, 0.6959691371479981),
    6: (5.5422956347465515, 0.7778050218251545),
    7: (5.529297888278961, 0.7344614278446354),
    8: (5.519506216049194, 0.822074877249932),
}
BITS_PER_BYTE = 7.967838208791236


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with `corpus` and `run`, made the working directory, as the config's paths need."""
    shutil.unpack_archive(GOLDEN, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_earlier_version_s_run_is_gone_on_with(golden: Path) -> None:
    assert whole_runs.train_here(golden / "run/config.yaml", "parallel.tp=1", "train.steps=8")
    lines = [json.loads(line) for line in (golden / "run/metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}
    assert sorted(found) == list(range(1, 9))
    for step, values in EXPECTED.items():
        assert found[step] == pytest.approx(values, rel=1e-5), step
    assert lines[-1]["eval"]["made_up"]["bits_per_byte"] == pytest.approx(BITS_PER_BYTE, rel=1e-5)
    ledger = [json.loads(line) for line in (golden / "run/ledger.jsonl").read_text().splitlines()]
    assert [number for line in ledger for number in line["sequences"]] == list(range(64))


def test_its_bytes_are_verified(golden: Path) -> None:
    assert whole_runs.germinal("checkpoint", "verify", "run", cwd=golden).returncode == 0
    assert whole_runs.germinal("data", "verify", "corpus", cwd=golden).returncode == 0
    weights = golden / "run/checkpoints/step-000000004/rank-00001.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert whole_runs.germinal("checkpoint", "verify", "run", cwd=golden).returncode == 1
