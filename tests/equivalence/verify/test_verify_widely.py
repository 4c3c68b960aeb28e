"""`germinal verify` in 16 bits: every preset on right layouts is equal, and every planted fault is found.

Slow: each preset's own optimiser, schedule and masks, at a size for a CPU, under seeds and both precisions.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import test_planted_faults as faults

from common.precision import Precision
from verifying import References, compared
from whole_runs import make_corpus, write_config

pytestmark = pytest.mark.slow

STEPS = 5
CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = ("model.layers=4", "model.vocab=512", "train.global_batch=16", "train.micro_batch=2")
PRESETS: dict[str, tuple[str, ...]] = {
    "debug": (),
    "quickstart": ("train.micro_batch=2", "model.heads=4", "model.kv_heads=4"),
    "gpt2-124m": (*SMALL, "model.hidden=96", "model.heads=4", "model.kv_heads=4", "model.ffn_hidden=256"),
    "llama-1b": (*SMALL, "model.hidden=64", "model.heads=8", "model.kv_heads=4", "model.ffn_hidden=256"),
    "8b": (*SMALL, "model.hidden=64", "model.heads=8", "model.kv_heads=4", "model.ffn_hidden=224"),
}
SEQ_LEN = {"gpt2-124m": 128, "llama-1b": 128, "8b": 128}
LAYOUTS: list[tuple[int, tuple[str, ...]]] = [
    (2, ("tp=2",)),
    (2, ("cp=2",)),
    (2, ("zero=1",)),
    (2, ("zero=2",)),
    (2, ("zero=3",)),
    (2, ("pp=2", "zero=1")),
    (4, ("pp=2", "tp=2", "zero=1")),
    (4, ("tp=2", "cp=2")),
    (4, ("tp=2", "zero=3")),
    *((2, ("engine=deepspeed", f"zero={zero}", "compile=false")) for zero in (0, 1, 2, 3)),
]
# Tensor parallelism rounds most, so every reference is compared with it; the others take turns.
CASES = [
    (preset, precision, seed, layout)
    for number, (preset, precision, seed) in enumerate(itertools.product(PRESETS, ("bf16", "fp16"), (0, 1)))
    for layout in (LAYOUTS[0], *(LAYOUTS[1 + (3 * number + n) % (len(LAYOUTS) - 1)] for n in range(3)))
]
FAULTS: list[tuple[Any, int, list[str]]] = [
    (faults.gradient_scaled_on_one_rank, 2, ["parallel.tp=2"]),
    (faults.gradient_scaled_on_one_rank, 2, ["parallel.pp=2"]),
    (faults.gradient_scaled_on_one_rank, 2, ["parallel.zero=1"]),
    (faults.divisor_off_by_one_percent, 2, ["parallel.zero=1"]),
    (faults.divisor_off_by_one_percent, 2, ["parallel.tp=2"]),
    (faults.normalisation_off_by_one_percent, 2, ["parallel.zero=1"]),
    (faults.loss_off_by_one_percent, 2, ["parallel.tp=2"]),
    (faults.norm_not_synchronised, 2, ["parallel.tp=2"]),
    (faults.replicated_gradients_left_partial, 2, ["parallel.tp=2"]),
    (faults.micro_batch_counted_twice, 2, ["parallel.zero=2"]),
    (faults.ranks_read_the_same_data, 2, ["parallel.zero=1"]),
]
# Not among them: a mean of means, which is right where every row has as many targets, as here.
PLANTED = [(*fault, precision) for fault in FAULTS for precision in get_args(Precision)] + [
    # It moves the gradient norm by 6e-5, less than a rounding in 16 bits.
    (faults.replicated_parameters_counted_twice, 2, ["parallel.tp=2"], "fp32"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("widely"), documents=200)


@pytest.fixture(scope="module")
def references() -> Iterator[References]:
    made = References(STEPS)
    yield made
    made.close()


def test_sixty_layouts_at_least() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    ("preset", "precision", "seed", "layout"),
    CASES,
    ids=lambda value: " ".join(value[1]) if isinstance(value, tuple) else str(value),
)
def test_right_layout_is_equal(
    ranks: Any, corpus: Path, references: References, preset: str, precision: str, seed: int, layout: Any
) -> None:
    world, names = layout
    if "engine=deepspeed" in names:
        if preset == "quickstart":
            pytest.skip("DeepSpeed has no Muon")
        pytest.importorskip("deepspeed")
    settings = [f"data.sources=[{{path: {corpus}/train}}]", "data.heldout=[]", "train.eval_every=0"]
    settings += [*PRESETS[preset], f"train.precision={precision}", f"seed={seed}"]
    if preset in SEQ_LEN:
        settings.append(f"data.seq_len={SEQ_LEN[preset]}")
    config = CONFIGS / f"{preset}.yaml"
    overrides = [*settings, *(f"parallel.{name}" for name in names)]
    report = ranks(world).run(compared, config, overrides, references(config, settings))[0]
    assert report["equal"], report["problems"]
    assert report["worst_factor"]["limit"] < 0.01


@pytest.mark.parametrize(
    ("fault", "world", "layout", "precision"),
    PLANTED,
    ids=[f"{fault.__name__}-{layout[0][9:]}-{precision}" for fault, _, layout, precision in PLANTED],
)
def test_planted_fault_is_found_in_every_precision(
    ranks: Any,
    corpus: Path,
    references: References,
    fault: Any,
    world: int,
    layout: list[str],
    precision: str,
) -> None:
    folder = corpus.parent / "config"
    folder.mkdir(exist_ok=True)
    config = write_config(folder, corpus, train__micro_batch=1)
    settings = [f"train.precision={precision}"]
    reference = references(config, settings)
    report = ranks(world).run(compared, config, [*settings, *layout], reference, fault)[0]
    assert not report["equal"]
