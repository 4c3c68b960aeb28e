"""`make quickstart`: from Python's own source files to a small trained language model, on a CPU, in minutes.

It runs the commands that a user would type (`prepare`, `train`, `generate`) and shows each of them. It adds
the choice of the corpus, the comparison with three compressors, and the closing table. Run again, it
continues an interrupted `prepare` or `train` and does not repeat a finished one; the comparison and the
sample are made anew.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.exit_codes import FAILED, INTERRUPTED
from common.standard_error import complain

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/quickstart.yaml"
CORPUS = "corpora/stdlib"
RUN = "runs/quickstart"
PROMPT = 'def read_lines(path):\n    """'

VOCAB = 4096
HELDOUT_SHARE = 0.08
# Tests and installed packages, which not every machine has; and the two packages of generated tables, whose
# files are near-copies of each other: a model that saw most of them would look better on the rest than it is.
LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data")
SPLIT_RULE = (
    f"Held out, and never trained on: about {HELDOUT_SHARE:.0%} of the files, chosen by a hash of their "
    "contents. Left out of both sides: tests, and the generated tables of encodings and pydoc_data."
)

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda text: gzip.compress(text, 9),
    "bzip2 -9": lambda text: bz2.compress(text, 9),
    "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


def main() -> int:
    """Run the whole quickstart; return the exit code, which is that of the first command that failed."""
    began = time.monotonic()
    library = Path(sysconfig.get_path("stdlib"))
    options = ["--include", "*.py", *(word for name in LEFT_OUT for word in ("--exclude", name))]
    options += ["--train-tokenizer", str(VOCAB), "--heldout", str(HELDOUT_SHARE)]
    for command in (("prepare", str(library), "--out", CORPUS, *options), ("train", CONFIG)):
        if code := germinal(*command):
            return code

    run = ROOT / RUN
    picture = run / "loss.png"
    steps, heldout = read_metrics(run / "metrics.jsonl")
    if heldout is None:
        return complain(
            f"{RUN}/metrics.jsonl holds no evaluation; remove {RUN} and run make quickstart again", FAILED
        )
    baselines = bits_per_byte_compressed(heldout_texts(ROOT / CORPUS / "heldout", library))
    if code := germinal("generate", RUN, "--prompt", PROMPT, "--max-tokens", "160"):
        return code
    closing_table(steps, heldout, baselines, seconds=time.monotonic() - began)
    print(f"run folder  {RUN}/   loss curve  {picture.relative_to(ROOT)}   samples  germinal generate {RUN}")
    better = [name for name, bits in baselines.items() if bits <= heldout]
    return complain(f"the model does not beat {', '.join(better)} on held-out files", FAILED) if better else 0


def germinal(*arguments: str) -> int:
    """Show a command as a user would type it, and run it with this interpreter; return its exit code.

    The terminal sends Ctrl-C to the command, too, which may have to save: subprocess.run would kill it.
    """
    print(f"\n$ germinal {shlex.join(arguments)}", flush=True)
    command = subprocess.Popen((sys.executable, "-m", "launch.cli", *arguments), cwd=ROOT)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return command.wait()


def read_metrics(path: Path) -> tuple[list[dict[str, float]], float | None]:
    """Return the logged steps of a run, and the bits per byte of its newest evaluation, if there is one."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    evaluations = [record["eval"] for record in records if "eval" in record]
    newest = next(iter(evaluations[-1].values()))["bits_per_byte"] if evaluations else None
    return [record for record in records if "loss" in record], newest


def heldout_texts(corpus: Path, library: Path) -> list[bytes]:
    """Read the source files that `prepare` held out, as the corpus's shards name them."""
    texts = []
    for shard in sorted(corpus.glob("shard-*.tar")):
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                entry = tar.extractfile(member) if member.name.endswith(".json") else None
                if entry is not None:
                    texts.append((library / json.load(entry)["path"]).read_bytes())
    return texts


def bits_per_byte_compressed(texts: Sequence[bytes]) -> dict[str, float]:
    """Return compressor → bits per byte of `texts`, each text compressed on its own, headers included.

    The model has the same task: every file alone, and never seen before.
    """
    total_bytes = sum(map(len, texts))
    return {
        name: 8 * sum(len(compress(text)) for text in texts) / total_bytes
        for name, compress in COMPRESSORS.items()
    }


def closing_table(
    steps: Sequence[dict[str, float]], heldout: float, baselines: dict[str, float], *, seconds: float
) -> None:
    """Print the steps trained and how the model compares with the compressors, on one screen."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    trained_seconds = sum(record["step_seconds"] for record in steps)
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title="\nquickstart", title_justify="left", title_style="bold"
    )
    for column in ("steps", "tokens", "tokens/s", "time"):
        table.add_column(column, justify="right")
    tokens = int(steps[-1]["tokens"])
    minutes = f"{seconds / 60:.1f} min"
    table.add_row(f"{int(steps[-1]['step']):,}", f"{tokens:,}", f"{tokens / trained_seconds:,.0f}", minutes)

    ranking = Table(box=SIMPLE_HEAD, pad_edge=False)
    ranking.add_column("held-out files, each coded by itself")
    ranking.add_column("bits per byte", justify="right")
    ranking.add_row("this model", f"{heldout:.3f}", style="bold green")
    for name, bits in sorted(baselines.items(), key=lambda entry: entry[1]):
        ranking.add_row(name, f"{bits:.3f}")
    console = Console()
    console.print(table)
    console.print(ranking)
    console.print(SPLIT_RULE)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # between two commands
        sys.exit(complain("interrupted", INTERRUPTED))
