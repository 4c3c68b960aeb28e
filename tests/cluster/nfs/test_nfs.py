"""A run folder on a real NFS server, seen by two machines that cache what they know of it for a minute."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfs import WITHOUT_LOCKS, Machine, Network, network
from trainer.checkpoint.folder import commit
from trainer.checkpoint.merge import Part
from whole_runs import records, whole_steps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT, PROGRAMS = Path(__file__).parents[3], Path(sys.executable).parent


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as net:
        net.serve()
        yield net


def python(net: Network, name: str, code: str, *, alone: bool = True) -> str:
    """A script for a machine that runs `code` with this project's packages; `alone`: and no others."""
    file = net.folder / f"{name}.py"
    file.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    return f"{sys.executable} {'-S ' * alone}-u {file}"


def say(net: Network, word: str) -> None:
    """Let the machines go on that wait for `word`; through this machine's disk, not the server's."""
    (net.folder / word).touch()


WAIT = """
import os, time
def wait(word):
    while not os.path.exists(f"{FOLDER}/{word}"):
        time.sleep(0.05)
"""


def test_a_name_that_a_machine_remembers_as_missing_is_looked_for_again(net: Network) -> None:
    code = (
        f"FOLDER = {str(net.folder)!r}"
        + WAIT
        + """
from pathlib import Path
from common.files import look_again
mark = Path("/run/nfs/runs/mine/.epoch")
print("before", mark.exists(), flush=True)
wait("made")
print("remembered", mark.exists(), flush=True)
print("again", look_again(mark), mark.exists(), look_again(mark.with_name("other")), flush=True)
print("left", sorted(os.listdir(mark.parent)), sorted(os.listdir("/run/nfs")), flush=True)
"""
    )
    (net.export / "runs").mkdir()
    one = net.machine("one").start(python(net, "look", code))
    one.await_words("before False")
    (net.export / "runs/mine").mkdir()
    (net.export / "runs/mine/.epoch").write_text("1 mark\n")
    say(net, "made")
    said = one.await_end(60)
    assert "again True True False" in said and "left ['.epoch'] ['runs']" in said, said


COMMITTED = """
from pathlib import Path
from trainer.checkpoint.manifest import MANIFEST, read_manifest
final = Path("/run/nfs/checkpoints/step-000000001")
print("before", final.exists(), flush=True)
wait("committed")
try:
    print("remembered", (final / MANIFEST).read_bytes(), flush=True)
except FileNotFoundError:
    print("remembered as missing", flush=True)
print("step", read_manifest(final).step, flush=True)
"""


def test_a_checkpoint_that_another_machine_has_just_committed_is_whole(net: Network) -> None:
    """A save looks whether there is one of its step: a machine then remembers that there is none."""
    tmp, final = (net.export / "checkpoints" / name for name in (".tmp-step", "step-000000001"))
    tmp.mkdir(parents=True)
    code = f"FOLDER = {str(net.folder)!r}" + WAIT + COMMITTED
    script = python(net, "committed", code, alone=False)
    one = net.machine("one").start(ENVIRONMENT + script, memory="3G")
    one.await_words("before False")
    commit(tmp, final, [Part({}, {})], step=1, sequences=8)
    say(net, "committed")
    said = one.await_end(60)
    assert "remembered as missing" in said and "step 1" in said, said


HOLD = """
from pathlib import Path
from common.lock import FolderLock
from trainer.folder.fence import Fence
run = Path("/run/nfs/run")
def take():
    while True:
        try:
            return FolderLock.take(run, patience_seconds=0.0)
        except BlockingIOError as error:
            print("held:", error, flush=True)
            time.sleep(1)
lock, fence = take(), Fence(run)
fence.take()
print("epoch", fence.epoch, flush=True)
"""
WRITE = """
wait("go")
try:
    fence.check()
    print("wrote", flush=True)
except RuntimeError as error:
    print("refused:", error, flush=True)
"""


def holders(net: Network) -> tuple[Machine, str]:
    (net.export / "run").mkdir()
    return net.machine("one"), f"FOLDER = {str(net.folder)!r}" + WAIT + HOLD


def test_a_folder_is_held_by_one_machine_until_its_power_goes(net: Network) -> None:
    one, code = holders(net)
    one.start(python(net, "hold", code + WRITE))
    one.await_words("epoch 1")
    two = net.machine("two").start(python(net, "take", code))
    two.await_words("held: /run/nfs/run is in use by process")
    assert "on one: run the same command again" in two.said
    one.lose()
    assert "epoch 2" in two.await_end(120)


def test_a_machine_that_was_cut_off_writes_nothing_once_another_has_taken_over(net: Network) -> None:
    one, code = holders(net)
    one.start(python(net, "hold", code + WRITE))
    one.await_words("epoch 1")
    one.cut()  # the server takes its lock away once the lease is over
    two = net.machine("two").start(python(net, "take", code + 'print("done", flush=True)\n'))
    two.await_words("done")
    assert "epoch 2" in two.said
    say(net, "go")
    one.join()
    said = one.await_end(120)
    assert "refused: /run/nfs/run was taken over by a later start of the run: process" in said, said
    assert "wrote" not in said


APPEND = """
from pathlib import Path
from trainer.record.events import EventLog
log = EventLog(Path("/run/nfs/run/events.jsonl"))
log.event("start", 0, "the file is there, and its length known")
print("ready", flush=True)
wait("go")
for number in range(100):
    log.event("save", number, os.uname().nodename + " " + "x" * number)
    time.sleep(0.01)
"""


def test_events_of_two_machines_are_whole(net: Network) -> None:
    code = f"FOLDER = {str(net.folder)!r}" + WAIT + APPEND
    (net.export / "run").mkdir()
    scripts = {name: python(net, name, code, alone=False) for name in ("one", "two")}
    machines = [net.machine(name).start(script) for name, script in scripts.items()]
    for machine in machines:
        machine.await_words("ready")
    say(net, "go")
    for machine in machines:
        assert "exit 0" in machine.await_end(120), machine.said[-2000:]
    found = records(net.export / "run/events.jsonl")
    told = sorted((event["reason"].split()[0], event["step"]) for event in found if event["kind"] == "save")
    assert told == [(name, step) for name in ("one", "two") for step in range(100)]


RUN = """
name: nfs
seed: 0
run_dir: {run}
model: {{kind: decoder, layers: 2, hidden: 64, heads: 4, vocab: 24}}
objective: {{kind: causal_lm}}
data:
  sources: [{{path: {corpus}/train, name: proteins}}]
  seq_len: 128
  packing: best_fit
optim: {{lr: 3.0e-3, warmup_steps: 2}}
train: {{steps: 24, global_batch: 16, micro_batch: 8, precision: fp32, log_every: 1}}
checkpoint: {{every: 3, keep: 20}}
track: {{tools: [jsonl]}}
"""
ENVIRONMENT = f"""
export OMP_NUM_THREADS=1 PYTHONPATH={ROOT} HOME=/run/home TMPDIR=/run PATH={PROGRAMS}:$PATH
"""
RANK = """
export RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR={first} MASTER_PORT=29777
germinal rank {config} 2>&1 | cat
"""


def test_a_server_that_is_away_twice_during_a_run_leaves_no_trace(net: Network) -> None:
    """Two machines, a rank each; a checkpoint every third step."""
    corpus = prepare(net)
    there, here = net.folder / "there.yaml", net.folder / "here.yaml"
    there.write_text(RUN.format(run="/run/nfs/runs/run", corpus=corpus))
    here.write_text(RUN.format(run=net.folder / "run", corpus=corpus))
    (net.export / "runs").mkdir()
    run = net.export / "runs/run"
    machines = [net.machine("one"), net.machine("two")]
    for rank, machine in enumerate(machines):
        script = RANK.format(rank=rank, first=machines[0].address, config=there)
        machine.start(ENVIRONMENT + script, memory="3G")
    for step in (4, 11):
        until(lambda step=step: whole_steps(run / "metrics.jsonl") >= step, machines[0])
        net.stop_serving()
        time.sleep(8)
        net.serve()
    for machine in machines:
        assert "exit 0" in machine.await_end(600), machine.said[-3000:]
    subprocess.run([PROGRAMS / "germinal", "train", here, "--nproc", "2"], check=True, capture_output=True)
    for one, other in zip(
        records(run / "metrics.jsonl"), records(net.folder / "run/metrics.jsonl"), strict=True
    ):
        assert (one["step"], one["loss"], one["grad_norm"]) == (
            other["step"],
            other["loss"],
            other["grad_norm"],
        )
    assert not [event for event in records(run / "events.jsonl") if event["kind"] == "fault"]
    folders = sorted((run / "checkpoints").glob("step-*"))
    assert len(folders) == 8
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            expected = net.folder / "run/checkpoints" / folder.name / file.name
            assert file.read_bytes() == expected.read_bytes(), file


def prepare(net: Network) -> Path:
    corpus = net.folder / "corpus"
    command = [PROGRAMS / "germinal", "prepare", "embedded:proteins", "--out", corpus]
    subprocess.run(command, check=True, capture_output=True)
    return corpus


SECOND = """
attempt() {{ {{ germinal rank {config} "$@" 2>&1; echo "code $?"; }} | cat; }}
attempt
until [ -s {folder}/steps ]; do sleep 0.1; done
attempt train.steps=$(cat {folder}/steps)
"""


def test_without_locks_between_machines_a_run_is_one_machines_until_its_power_goes(net: Network) -> None:
    corpus, config = prepare(net), net.folder / "there.yaml"
    config.write_text(RUN.format(run="/run/nfs/run", corpus=corpus).replace("steps: 24", "steps: 100000"))
    run = net.export / "run"
    one, two = net.machine("one"), net.machine("two")
    alone = f"{ENVIRONMENT}\ngerminal rank {config} 2>&1 | cat\n"
    one.start(alone, memory="3G", mount=WITHOUT_LOCKS)
    until(lambda: whole_steps(run / "metrics.jsonl") >= 1, one)
    second = ENVIRONMENT + SECOND.format(config=config, folder=net.folder)
    two.start(second, memory="3G", mount=WITHOUT_LOCKS)
    two.await_words("code 75", 300)
    assert "error: /run/nfs/run is in use by process " in two.said and " on one: run the same" in two.said
    before = whole_steps(run / "metrics.jsonl")
    until(lambda: whole_steps(run / "metrics.jsonl") >= before + 4, one)
    one.lose()
    steps = whole_steps(run / "metrics.jsonl") + 6
    (net.folder / "steps").write_text(str(steps))
    said = two.await_end(400)
    assert "on one gave no sign of life in 3" in said and said.count("code 0") == 1, said[-3000:]
    assert [record["step"] for record in records(run / "metrics.jsonl")] == list(range(1, steps + 1))
    assert sorted(file.name for file in run.glob(".lease-*")) == [".lease-2"]
    (lock, taken) = (event for event in records(run / "events.jsonl") if event["kind"] == "lock")
    assert "hold on one host only; held by lease 1" in lock["reason"]
    assert "held by lease 2; process " in taken["reason"]


def until(there: Callable[[], bool], machine: Machine, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end and "exit" not in machine.said, machine.said[-3000:]
        time.sleep(0.2)
