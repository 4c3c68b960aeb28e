"""What a resume costs in the ledger, by the steps of the run: bytes read and written, and processor seconds.

`python bench/scale/ledger.py --before TREE`: a ledger of 2,048 sequences a step, of one data rank, up to a
checkpoint 5,000 steps into the last range, and one step more that the killed run made. Measured: what rank 0
does to it between reading the checkpoint's state and the first step. TREE: a checkout of an earlier commit,
resumed in turn.

Writes bench/results/scale/ledger.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
RESULTS = TREE / "bench" / "results" / "scale" / "ledger.json"
STEPS = (5_000, 45_000, 95_000)
SEQUENCES = 2048
# argv: the run's folder, the checkpoint's step. Runs with the code of either tree.
RESUME = """
import json, sys, time
from pathlib import Path
from trainer.record import digest, sinks

def transferred():
    words = Path("/proc/self/io").read_text().split()
    return int(words[1]), int(words[3])

folder, step = Path(sys.argv[1]), int(sys.argv[2])
noted = json.loads((folder / "noted.json").read_text())
path = folder / "ledger.jsonl"
try:
    from trainer.record.shared_log import LEDGER_STEPS, SharedDigest, SharedLog
    log = SharedLog(folder, "ledger", steps=LEDGER_STEPS)
    before, begin = transferred(), time.process_time()
    known = SharedDigest(log)
    assert not list(known.changes(noted["files"], step))
    dropped = log.cut_after(step, known.known)
except ImportError:
    before, begin = transferred(), time.process_time()
    known = digest.LogDigest(path)
    assert known.resume(noted["one file"])
    dropped = sinks.truncate_after(path, step, known_bytes=known.known_bytes)
seconds = time.process_time() - begin
read, written = (now - then for now, then in zip(transferred(), before))
assert dropped == (1, 0), dropped
print(json.dumps(dict(seconds=seconds, read_mb=read / 1e6, written_mb=written / 1e6)))
"""


def make_run(folder: Path, step: int, *, one_file: bool) -> None:
    """Write a ledger up to the step after `step`, and what the checkpoint of `step` notes of it."""
    from trainer.record.digest import LogDigest
    from trainer.record.shared_log import LEDGER_STEPS, SharedDigest, SharedLog, file_of

    folder.mkdir()
    steps = sys.maxsize if one_file else LEDGER_STEPS
    log = SharedLog(folder, "ledger", steps=steps)
    numbers = ", ".join(map(str, range(10**8, 10**8 + SEQUENCES)))  # of as many digits as late in a long run
    for begin in range(0, step + 1, min(steps, step + 1)):
        with file_of(folder, "ledger", begin, 0).open("w") as file:
            for at in range(begin + 1, min(begin + steps, step + 1) + 1):
                file.write(f'{{"step": {at}, "dp_rank": 0, "sequences": [{numbers}]}}\n')
    noted = {"one file": LogDigest(folder / "ledger.jsonl").at(step)} if one_file else {}
    if not one_file:
        noted["files"] = SharedDigest(log).at(step)
    (folder / "noted.json").write_text(json.dumps(noted))


def resumed(tree: Path, folder: Path, step: int) -> dict[str, Any]:
    """Resume with the code of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", RESUME, str(folder), str(step)]
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, check=True)
    return {key: round(value, 3) for key, value in json.loads(done.stdout).items()}


def main() -> None:
    """Make the ledgers, resume, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    args = parser.parse_args()
    sys.path.insert(0, str(TREE))
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="scale-ledger-") as scratch:
        for step in STEPS:
            found[str(step)] = {}
            for name, tree in (("before", args.before), ("now", TREE)):
                if tree is not None:
                    folder = Path(scratch) / f"{name}-{step}"
                    make_run(folder, step, one_file=name == "before")
                    found[str(step)][name] = resumed(tree, folder, step)
                    shutil.rmtree(folder)
            print(step, json.dumps(found[str(step)]), flush=True)
    RESULTS.write_text(json.dumps({"sequences_a_step": SEQUENCES, "resumes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
