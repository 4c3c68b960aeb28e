"""The results of `bench/gpu.py` as JSON and as Markdown."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from on_gpu.kernels import KINDS


@dataclass
class Result:
    """One line of the table; figures are 0 where the case was skipped.

    size, precision: the case.
    skipped: why there are no figures.
    parameters: of the model.
    seq_len: tokens of a sequence.
    micro_batch: sequences of a micro-batch.
    accumulated: micro-batches of a step.
    recompute, compiled: as in the config.
    step_seconds: median of the measured steps.
    tokens_per_second, tflops: of the model's FLOPs, by PaLM's convention.
    mfu_paper, mfu_real: against PEAK_ON_PAPER and PEAK_REAL.
    peak_memory_gib: of the CUDA allocator.
    loss: of the last step, nats; about log(vocab), for tokens are random.
    share: kernel class → its part of the step's time, idle included; empty where the profile failed.
    tried: larger micro-batches that did not fit, and why.
    """

    size: str
    precision: str
    skipped: str = ""
    parameters: int = 0
    seq_len: int = 0
    micro_batch: int = 0
    accumulated: int = 0
    recompute: str = ""
    compiled: bool = False
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    tflops: float = 0.0
    mfu_paper: float = 0.0
    mfu_real: float = 0.0
    peak_memory_gib: float = 0.0
    loss: float = 0.0
    share: dict[str, float] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)


def markdown(device: str, results: list[Result], about: dict[str, str], note: str) -> str:
    head = ["model", "precision", "micro-batch × seq", "tokens/s", "TFLOP/s", "MFU of 989", "MFU of 794.5",
            "peak GiB"]  # fmt: skip
    done = [result for result in results if not result.skipped]
    rows = [
        [r.size, r.precision, f"{r.micro_batch} × {r.seq_len}", f"{r.tokens_per_second:,.0f}",
         f"{r.tflops:.1f}", f"{r.mfu_paper:.1%}", f"{r.mfu_real:.1%}", f"{r.peak_memory_gib:.1f}"]
        for r in done
    ]  # fmt: skip
    shares = [[r.size, r.precision, *(f"{r.share.get(kind, 0):.1%}" for kind in KINDS)] for r in done]
    lines = [f"# Training speed on {device}", "", note, ""]
    lines += [*table(head, rows), "", "Where a step's time goes:", ""]
    lines += [*table(["model", "precision", *KINDS], shares), ""]
    for result in results:
        if result.skipped:
            lines.append(f"- {result.size} {result.precision} left out: {result.skipped}")
        lines += [f"- {result.size} {result.precision}: {line}" for line in result.tried]
    return "\n".join([*lines, "", ", ".join(f"{key} {value}" for key, value in about.items()), ""])


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def write(
    out: Path, device: str, results: list[Result], about: dict[str, str], *, note: str, smoke: bool
) -> str:
    """Write both files; return the text of the readable one.

    Args:
        out: the folder.
        device: its name, which names the files.
        results: of the cases so far.
        about: what else to record: versions, settings.
        note: what the figures are, for the reader.
        smoke: toys were measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub("[^A-Za-z0-9]+", "-", device).strip("-")
    stem = f"gpu-{name}{'-smoke' if smoke else ''}"
    document = {"device": device, **about, "cases": [asdict(result) for result in results]}
    (out / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = markdown(device, results, about, note)
    (out / f"{stem}.md").write_text(text)
    return text
