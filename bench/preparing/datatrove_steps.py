"""datatrove's side of `against_datatrove.py`, run by a Python that has it; imports nothing of this project.

    python datatrove_steps.py CASE SOURCES TOKENIZER OUT

prints CPU seconds, seconds by the clock, documents read and documents written, of the steps alone: everything
is imported and the word splitter's first use is over.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.text import split_into_words
from loguru import logger

TASKS = 4
# Bands and rows as `prepare` has them for a similarity of 0.8.
BUCKETS, ROWS = 18, 7
# The least share of words with letters. Gopher's rule says 0.8; but spaCy counts punctuation marks as words,
# so of 173 of these texts 3 would be left to tokenise where `prepare` has 154. With this share 154 are.
LETTERS = 0.5


def content(document: Any) -> bytes:
    """What two documents are compared by; at the top level, so that it can be pickled."""
    return bytes(document.text.encode())


def run(pipeline: list[Any], tasks: int = TASKS) -> Any:
    """Run one pipeline in this process; return what it counted."""
    given = {"tasks": tasks, "workers": 1, "skip_completed": False}
    return LocalPipelineExecutor(
        pipeline=pipeline, logging_dir=tempfile.mkdtemp(dir=sys.argv[-1]), **given
    ).run()


def rules() -> list[Any]:
    """Gopher's rules of repetition and of quality."""
    return [GopherRepetitionFilter(), GopherQualityFilter(max_non_alpha_words_ratio=LETTERS)]


def steps(case: str, sources: str, tokenizer: str, out: Path) -> Any:
    """Run the case; return the counts of its last pipeline."""
    reader = JsonlReader(sources)
    write = DocumentTokenizer(
        str(out / "tokens"), tokenizer, eos_token="<|endoftext|>", shuffle_documents=False
    )
    if case == "plain":
        return run([reader, write])
    if case == "filters":
        return run([reader, *rules(), write])
    if case == "exact":
        config = ExactDedupConfig(content_getter=content)
        run([reader, ExactDedupSignature(str(out / "signatures"), config)])
        run([ExactFindDedups(str(out / "signatures"), str(out / "found"), config)], tasks=1)
        return run([reader, ExactDedupFilter(str(out / "found"), config), write])
    near = MinhashConfig(n_grams=5, num_buckets=BUCKETS, hashes_per_bucket=ROWS)
    # As its own example for FineWeb does: filtered documents are stored, and read again behind the search.
    kept = str(out / "kept")
    run([reader, *rules(), JsonlWriter(kept)])
    reader = JsonlReader(kept)
    run([reader, MinhashDedupSignature(str(out / "signatures"), near)])
    run([MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=near)], tasks=BUCKETS)
    run([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=near)], tasks=1)
    return run([reader, MinhashDedupFilter(str(out / "remove")), write])


def main() -> None:
    """Run one case and print its numbers."""
    case, sources, tokenizer, out = sys.argv[1:]
    logger.remove()
    split_into_words("warm up, once")
    Path(out).mkdir()
    before, clock = os.times(), time.perf_counter()
    stats = steps(case, sources, tokenizer, Path(out))
    after = os.times()
    written = next(step for step in stats.stats if "TOKENIZER" in step.name.upper())
    read = sum(path.read_bytes().count(b"\n") for path in Path(sources).glob("*.jsonl"))
    seconds = sum(after[:4]) - sum(before[:4])
    print(seconds, time.perf_counter() - clock, read, written.stats["tokens"].n)


if __name__ == "__main__":
    main()
