"""bench/gpu.py runs without a GPU, and reads a profile as it should."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.torch_engine.engine import TorchEngine
from parallel.torch_engine.local_gradients import LocalGradients

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH.parent))  # as `python bench/gpu.py` does
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCH.parent))


@pytest.fixture(scope="module")
def kernels(bench: Any) -> Any:
    return sys.modules["on_gpu.kernels"]


@pytest.mark.slow
def test_smoke_writes_both_tables(tmp_path: Path) -> None:
    """In a process of its own: it asserts that deepspeed, wandb and transformers were never imported."""
    command = [sys.executable, str(BENCH), "--smoke", "--fp8", "tensorwise", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=BENCH.parents[1], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    (document,) = [json.loads(path.read_text()) for path in tmp_path.glob("gpu-*-smoke.json")]
    done = [case for case in document["cases"] if not case["skipped"]]
    assert [case["size"] for case in done] == ["toy", "toy-deep"]
    for case in done:
        assert case["tokens_per_second"] > 0
        assert case["mfu_real"] == pytest.approx(case["mfu_paper"] * 989 / 794.5)
        assert sum(case["share"].values()) == pytest.approx(1.0, abs=1e-3)
        assert case["share"]["matmul"] > 0 and case["share"]["attention"] > 0
    left_out = [case["skipped"] for case in document["cases"] if case["skipped"]]
    assert len(left_out) == 2 and all("fp8" in reason for reason in left_out)
    (text,) = [path.read_text() for path in tmp_path.glob("gpu-*-smoke.md")]
    assert "| toy | bf16 |" in text and "left out: train.fp8=tensorwise" in text


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matmul"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_kernel<cutlass::bfloat16_t>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90>>", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>", "attention"),
        ("void at::native::chunk_cat_cuda_kernel<float, c10::BFloat16>", "copies"),
        ("void at::native::multi_tensor_apply_kernel<at::native::CopyFunctor<float>>", "copies"),
        ("triton_red_fused__to_copy_add_mean_mul_rsqrt_2", "elementwise, norm"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_transpose_1", "elementwise, norm"),
        ("void at::native::vectorized_elementwise_kernel<4, FillFunctor<float>>", "elementwise, norm"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("aten::mm", "matmul"),
    ],
)  # fmt: skip
def test_kernel_classes(kernels: Any, kernel: str, kind: str) -> None:
    assert kernels.kernel_class(kernel) == kind


def test_overlapping_kernels_share_their_time(kernels: Any) -> None:
    spans = [(0.0, 10.0, "matmul"), (5.0, 15.0, "communication"), (20.0, 25.0, "copies")]
    assert kernels.split_time(spans) == {"matmul": 7.5, "communication": 7.5, "copies": 5.0}


def test_micro_batch_is_halved_until_it_fits(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fill(result: Any, cfg: Any, runtime: Any, steps: int) -> None:
        tried.append(cfg.train.micro_batch)
        if cfg.train.micro_batch > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        result.micro_batch = cfg.train.micro_batch

    monkeypatch.setattr(bench, "fill", fill)
    runtime = bench.Runtime(0, 1, 0, torch.device("cpu"))
    fits = 1
    result = bench.measure(bench.SMOKE[0], "none", runtime, steps=1, accumulate=1)
    assert tried == [4, 2, 1] and result.micro_batch == 1 and not result.skipped
    assert [line.split(":")[0] for line in result.tried] == ["micro-batch 4", "micro-batch 2"]
    fits = 0
    result = bench.measure(bench.SMOKE[0], "none", runtime, steps=1, accumulate=1)
    assert result.skipped == "out of memory with one sequence"


def test_a_failed_profile_costs_no_figure(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise ValueError("no events")

    monkeypatch.setattr(bench, "where_time_goes", broken)
    runtime = bench.Runtime(0, 1, 0, torch.device("cpu"))
    result = bench.measure(bench.SMOKE[0], "none", runtime, steps=1, accumulate=1)
    assert not result.skipped and result.tokens_per_second > 0 and result.share == {}
    assert result.loss == pytest.approx(math.log(512), rel=0.1)


def test_a_step_without_an_update_is_no_figure(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "_update", lambda self, lr, factor: None)
    monkeypatch.setattr(LocalGradients, "squares", lambda self: torch.full((), math.inf).double())
    runtime = bench.Runtime(0, 1, 0, torch.device("cpu"))
    result = bench.measure(bench.SMOKE[0], "none", runtime, steps=1, accumulate=1)
    assert result.skipped == "failed: step 0 made no update: its gradient norm is inf"


def test_model_state_of_8b(bench: Any) -> None:
    """8.03 billion parameters at 12 bytes: an 80 GB GPU cannot, one of 141 GB can."""
    assert 89 < bench.state_bytes(bench.SIZES[-1]) / bench.GIB < 91
    sizes = {size.name: size.model.parameters().total / 1e6 for size in bench.SIZES}
    assert {name: round(millions, -1) for name, millions in sizes.items()} == {
        "125M": 120, "350M": 360, "1B": 1240, "8B": 8030
    }  # fmt: skip
