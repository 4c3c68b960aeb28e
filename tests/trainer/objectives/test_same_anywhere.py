"""What a model is fed of a sequence (masks, spans, cuts, partners, crops) is a function of its number:
the same in any process, on any rank, in any micro-batch and after a resume.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.stream.loader import Loader
from examples import BATCH, example, make_small_corpus, small
from trainer.config import reading
from trainer.objectives.build import build_objective
from trainer.ranks import Ranks
from trainer.start.opening import objective_context, open_stream
from whole_runs import environment

ROOT = Path(__file__).resolve().parents[3]
STEPS = 5
PROTEINS = "data.sources=[{path: corpora/proteins/train}]"
GLYPHS = "data.sources=[{path: corpora/glyphs/train}]"
# Example → what is changed, so that two small corpora are enough for all.
DRAWING: dict[str, tuple[str, ...]] = {
    "masked_lm": (PROTEINS,),
    "next_sentence": (PROTEINS,),
    "span_corruption": (PROTEINS,),
    "fill_in_the_middle": (PROTEINS,),
    "contrastive": (PROTEINS, "data.packing=views"),
    "masked_images": (GLYPHS, "data.augment={crop_scale: 0.3, flip: 0.5, hue: 0.2}"),
    "simclr": (GLYPHS, "data.augment={crop_scale: 0.3, flip: 0.5, brightness: 0.4, grayscale: 0.5}"),
}


def fed(
    name: str, *, ranks: int = 1, micro_batch: int = BATCH, start: int = 0, threads: int = 1
) -> dict[int, str]:
    """Sequence number → hash of all that the model is fed of it, of the steps from sequence `start` on."""
    overrides = (*DRAWING[name], "data.heldout=[]", "train.eval_every=0", f"data.decode_threads={threads}")
    cfg = reading.load(example(name), small(Path("run"), *overrides))
    found = {}
    for rank in range(ranks):
        stream = open_stream(cfg, Ranks())
        objective = build_objective(cfg.objective, objective_context(cfg, stream))
        loader = Loader(
            stream, rank=rank, ranks=ranks, global_batch=BATCH, micro_batch=micro_batch, start=start
        )
        for _ in range(STEPS - start // BATCH):
            for batch in next(loader):
                inputs = objective.inputs(batch.tensors, batch.sequences)
                tensors = {"x": inputs.x, **inputs.kwargs}
                for row, number in enumerate(batch.sequences):
                    told = hashlib.sha256()
                    for key in sorted(tensors):
                        told.update(key.encode() + tensors[key][row].contiguous().numpy().tobytes())
                    found[number] = told.hexdigest()
        loader.close()
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    for corpus in ("proteins", "glyphs"):
        make_small_corpus(corpus, folder)
    return folder


@pytest.mark.parametrize("name", DRAWING)
def test_on_any_rank_in_any_micro_batch_and_after_a_resume(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    whole = fed(name)
    assert sorted(whole) == list(range(STEPS * BATCH))
    assert len(set(whole.values())) == len(whole), "each is drawn anew"
    assert fed(name, micro_batch=1) == whole
    assert fed(name, ranks=4, micro_batch=2, threads=3) == whole
    resumed = fed(name, ranks=2, micro_batch=4, start=2 * BATCH)
    assert resumed == {number: told for number, told in whole.items() if number >= 2 * BATCH}


@pytest.mark.slow
def test_in_another_process(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another hash seed and number of threads."""
    monkeypatch.chdir(workplace)
    here = f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]}"
    program = f"import json, sys; {here}; import test_same_anywhere as t; print(json.dumps(t.of_all(3)))"
    env = environment() | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, cwd=workplace
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == of_all(1)


def of_all(threads: int) -> dict[str, dict[str, str]]:
    """Objective → sequence number, as text → hash."""
    return {name: {str(n): told for n, told in fed(name, threads=threads).items()} for name in DRAWING}
