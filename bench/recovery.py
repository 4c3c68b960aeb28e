"""What a fault costs a run, and how much of a day is left for training where faults are many.

`python bench/recovery.py`: a real run of two ranks under `germinal train`. For each of `--kills` faults, at
moments drawn from a seed, one rank is killed, and these are measured:

    recovery   from the kill to the end of the next step that was not done before the start (seconds)
    start      from the command to the end of its first step, of the same run begun by hand (the reference)
    noticed    from the kill to the event `restart`: the other rank has ended, and the next start begins
    lost       the steps since the newest checkpoint, which are made again

Recovery beyond start-up is the supervisor's own share. On a machine with other work, two starts differ by
seconds, and `noticed` is the better measure of that share.

A day is then simulated with these parts: faults come at random (Poisson), also while the run is starting.
`--hangs` of them are hangs, which are found only after supervise.hang_seconds. What is lost is drawn evenly
between two checkpoints. The result is the share of the day in steps that count, for several rates of faults
and times of start-up, for a cluster starts more slowly than this machine, and the rate at which it falls
below 97 %.

Writes bench/results/recovery.json.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "recovery.json"
GERMINAL = Path(sys.executable).with_name("germinal")
DAY_SECONDS = 86400.0
ENOUGH = 0.97
START_SECONDS = (10.0, 60.0, 300.0)
CONFIG = """
name: recovery
model: {kind: decoder, layers: 4, hidden: 64, heads: 4, vocab: 257}
data: {sources: [{path: corpus}], seq_len: 64}
optim: {lr: 1.0e-3}
train: {steps: 1000000, global_batch: 64, micro_batch: 8, log_every: 1}
checkpoint: {every: 20, keep: 2}
supervise: {restarts: 3}
"""


class Run:
    """The run in `folder`, as its files show it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        command = [GERMINAL, "train", "recovery.yaml", "--nproc", "2", f"run_dir={self.folder}"]
        self.process = subprocess.Popen(command, cwd=self.folder.parent, stderr=subprocess.DEVNULL)

    def ranks(self) -> list[int]:
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    def end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def count(self, kind: str) -> int:
        try:
            return (self.folder / "events.jsonl").read_text().count(f'"kind": "{kind}"')
        except FileNotFoundError:
            return 0

    def step(self) -> int:
        try:
            return (self.folder / "metrics.jsonl").read_bytes().count(b'"loss"')  # a line a step
        except FileNotFoundError:
            return 0

    def saved(self) -> int:
        return max((int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-*")), default=0)

    def first_step_after(self, starts: int) -> float:
        """Return the moment at which the start after `starts` earlier ones has made its first step."""
        assert self.process is not None
        while self.count("start") <= starts:
            self.wait()
        resumed = self.step()
        while self.step() <= resumed:
            self.wait()
        return time.monotonic()

    def wait(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            sys.exit(f"the run ended with {self.process.returncode}")
        time.sleep(0.01)


def measure(folder: Path, kills: int, seed: int) -> list[dict[str, float]]:
    """Return the parts of each fault."""
    draw = random.Random(seed)
    run = Run(folder / "run")
    found = []
    for number in range(kills + 1):
        starts, begin = run.count("start"), time.monotonic()
        run.begin()
        start_seconds = run.first_step_after(starts) - begin
        time.sleep(draw.uniform(3.0, 6.0))
        starts, step, saved = run.count("start"), run.step(), run.saved()
        restarts = run.count("restart")
        os.kill(draw.choice(run.ranks()), signal.SIGKILL)
        killed = time.monotonic()
        while run.count("restart") == restarts:
            run.wait()
        noticed = time.monotonic() - killed
        recovery = run.first_step_after(starts) - killed
        run.end()
        if number:  # the first start reads the files from the disk, and is not a resume
            found.append(
                {"start": start_seconds, "recovery": recovery, "noticed": noticed, "lost": step - saved}
            )
        print(json.dumps(found[-1:]), file=sys.stderr)
    return found


def effective(
    rate: float, *, start: float, beyond: float, every: float, hangs: float, hang_seconds: float, seed: int
) -> float:
    """Return the share of a simulated day in steps that count.

    rate: faults a day. start, beyond: seconds of start-up, and of recovery beyond it. every: seconds between
    two checkpoints. hangs: the share of faults that are hangs. hang_seconds: until one is found.
    """
    draw = random.Random(seed)
    now = useful = since_saved = 0.0
    while now < DAY_SECONDS:
        runs = min(draw.expovariate(rate / DAY_SECONDS), DAY_SECONDS - now)
        now += runs
        useful += runs
        if now >= DAY_SECONDS:
            break
        since_saved = (since_saved + runs) % every
        useful -= since_saved
        since_saved = 0.0
        now += hang_seconds if draw.random() < hangs else 0.0
        down = beyond + start
        while (again := draw.expovariate(rate / DAY_SECONDS)) < down:  # a fault while it starts
            now += again
        now += down
    return useful / now


def day(beyond: float, *, every: float, hangs: float, hang_seconds: float) -> dict[str, Any]:
    """Return the share by start-up and rate, and the rate at which it falls below `ENOUGH`.

    beyond: seconds of recovery beyond start-up.
    """
    table = {}
    for start in START_SECONDS:

        def share(rate: float, start: float = start) -> float:
            about = {"start": start, "beyond": beyond, "every": every}
            shares = [
                effective(rate, hangs=hangs, hang_seconds=hang_seconds, seed=seed, **about)
                for seed in range(200)
            ]
            return statistics.mean(shares)

        below = next((rate for rate in range(1, 2000) if share(rate) < ENOUGH), None)
        shares = {f"{rate} faults a day": round(share(rate), 4) for rate in (1, 8, 24, 48)}
        table[f"start-up {start:.0f} s"] = shares | {f"below {ENOUGH:.0%} from": f"{below} faults a day"}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints, of the day")
    parser.add_argument("--hangs", type=float, default=0.1, help="share of the faults that are hangs")
    parser.add_argument("--hang-seconds", type=float, default=120.0, help="until a hang is found")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recovery.yaml").write_text(CONFIG)
        source = f"{sysconfig.get_paths()['stdlib']}/json"
        prepare = [GERMINAL, "prepare", source, "--tokenizer", "bytes", "--out", "corpus"]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        found = measure(folder, args.kills, args.seed)
    beyond = [fault["recovery"] - fault["start"] for fault in found]
    parts = {
        "start_seconds": round(statistics.median(fault["start"] for fault in found), 2),
        "recovery_seconds": round(statistics.median(fault["recovery"] for fault in found), 2),
        "noticed_seconds": round(statistics.median(fault["noticed"] for fault in found), 2),
        "noticed_seconds_most": round(max(fault["noticed"] for fault in found), 2),
        "recovery_beyond_start_seconds": round(statistics.median(beyond), 2),
        "recovery_beyond_start_seconds_most": round(max(beyond), 2),
        "lost_steps": round(statistics.mean(fault["lost"] for fault in found), 1),
    }
    result = {
        "machine": f"CPU, {os.cpu_count()} cores",
        "kills": args.kills,
        "load_average": round(os.getloadavg()[1], 1),
        **parts,
        "day": {
            "seconds between checkpoints": args.every,
            "share of hangs": args.hangs,
            "seconds until a hang is found": args.hang_seconds,
            **day(
                parts["noticed_seconds"], every=args.every, hangs=args.hangs, hang_seconds=args.hang_seconds
            ),
        },
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
