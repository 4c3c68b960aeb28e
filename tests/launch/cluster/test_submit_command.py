"""`germinal submit`: what it sends, what it keeps, and what it refuses before anything is sent."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cluster import script, submission
from launch.cluster import slurm as programs
from launch.cluster.elements import elements
from trainer.config import reading

RUN = Path("runs/tiny")


def option(words: list[str], name: str) -> str | None:
    """The value of a long option among the words; None where it is not given."""
    found = [word for word in words if word.split("=")[0] == f"--{name}"]
    return found[-1].partition("=")[2] if found else None


def test_a_run_is_sent_with_all_that_is_asked_for(config, slurm, germinal, tmp_path) -> None:
    words = [
        "--nodes=2",
        "--nproc=2",
        "--time=1-2",
        "--gpus-per-node=a100:4",
        "--cpus-per-task=7",
        "--memory=0",
    ]
    code, out, _ = germinal("submit", config, *words, "--spare-nodes=1", "--sbatch=mail-type=END", "seed=3")
    assert code == 0 and "tiny: job 101, 2 nodes and 1 spare of 2 ranks" in out
    (sent,) = slurm.calls("sbatch")
    given = {"nodes": "3", "ntasks-per-node": "2", "time": "1-2", "gpus-per-node": "a100:4", "mem": "0"}
    given |= {"cpus-per-task": "7", "job-name": "tiny", "chdir": str(tmp_path), "mail-type": "END"}
    given |= {"signal": "B:USR1@180", "requeue": "", "no-kill": "", "parsable": "", "open-mode": "append"}
    assert {name: option(sent, name) for name in given} == given
    folder = RUN / "submit/1"
    assert [job.job for job in submission.jobs(folder)] == ["101"]
    assert reading.load(folder / "config.yaml").seed == 3
    assert shlex.split((folder / "command.txt").read_text()) == ["sbatch", *sent]
    sub = submission.read(folder)
    assert (sub.workdir, sub.overrides, sub.source) == (str(tmp_path), ["seed=3"], config)


def test_a_cluster_file_is_below_the_command_line(config, slurm, germinal) -> None:
    folder = Path("configs/cluster")
    folder.mkdir(parents=True)
    (folder / "big.yaml").write_text(
        "nodes: 4\nnproc: 2\naccount: them\nsbatch: {mail-type: END, comment: a}\n"
    )
    code, _, err = germinal(
        "submit", config, "--cluster=big", "--nodes=1", "--account=us", "--sbatch=comment=b", "--no-requeue"
    )
    assert code == 0 and "cluster file" not in err, "it was named"
    assert germinal("submit", config, "--cluster=big", "--nodes=1", "--dry-run")[2].startswith(
        "cluster file: configs/"
    )
    (sent,) = slurm.calls("sbatch")
    names = ("nodes", "ntasks-per-node", "account", "mail-type", "comment", "no-requeue", "requeue")
    assert [option(sent, name) for name in names] == ["1", "2", "us", "END", "b", "", None]
    (folder / "big.yaml").write_text("node: 4\n")
    code, line = germinal.refusal("submit", config, "--cluster=big")
    assert code == 2 and "configs/cluster/big.yaml: node=4: unknown key; did you mean nodes?" in line


def test_a_cluster_file_that_is_found_without_being_named_is_told(config, slurm, germinal) -> None:
    Path("configs/cluster").mkdir(parents=True)
    Path("configs/cluster/slurm.yaml").write_text("nodes: 1\n")
    assert "cluster file: configs/cluster/slurm.yaml\n" in germinal("submit", config)[2]


def test_the_copy_of_the_code_is_what_is_installed(config, slurm, germinal) -> None:
    germinal("submit", config)
    folder = RUN / "submit/1"
    assert (folder / "code/launch/cluster/script.py").read_text() == Path(script.__file__).read_text()
    assert not list((folder / "code").rglob("*.pyc"))
    state = json.loads((folder / "code.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", state["sha256"]) and state["versions"]["torch"]
    slurm.queue()
    assert germinal("submit", config, "--code=installed")[0] == 0
    assert submission.read(RUN / "submit/2").code == ""


def test_a_second_submission_is_refused_while_the_first_waits_or_runs(config, slurm, germinal) -> None:
    germinal("submit", config)
    for state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "SOMETHING_NEW"):
        slurm.queue(("101", state, "None"))
        code, line = germinal.refusal("submit", config)
        assert code == 75 and "tiny: job 101" in line and state in line
        assert "germinal cancel tiny" in line and "--after 101" in line
    assert len(slurm.calls("sbatch")) == 1
    assert germinal("submit", config, "--after=tiny")[0] == 0
    assert option(slurm.calls("sbatch")[1], "dependency") == "afterany:101"
    slurm.queue(("101", "CANCELLED", "None"), ("102", "FAILED", "NonZeroExitCode"))
    assert germinal("submit", config)[0] == 0
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified\n")  # all of them forgotten
    assert germinal("submit", config)[0] == 0
    slurm.fails("squeue", "squeue: error: Unable to contact slurm controller\n")
    code, line = germinal.refusal("submit", config)
    assert code == 1 and "cannot be seen" in line and "Unable to contact" in line
    assert len(slurm.calls("sbatch")) == 4


def test_an_array_is_one_run_an_element(config, slurm, germinal) -> None:
    code, _, err = germinal("submit", config, "--array=optim.lr=1e-3,3e-3", "--array=seed=0,1", "--at-once=2")
    assert code == 0, err
    names = ["tiny-lr1e-3-seed0", "tiny-lr1e-3-seed1", "tiny-lr3e-3-seed0", "tiny-lr3e-3-seed1"]
    sent = slurm.calls("sbatch")
    assert [option(words, "job-name") for words in sent] == names
    # No more than two at once: the third waits for the first, the fourth for the second.
    assert [option(words, "dependency") for words in sent] == [None, None, "afterany:101", "afterany:102"]
    configs = [reading.load(f"runs/{name}/submit/1/config.yaml") for name in names]
    assert [(cfg.optim.lr, cfg.seed) for cfg in configs] == [(1e-3, 0), (1e-3, 1), (3e-3, 0), (3e-3, 1)]
    assert [str(cfg.folder) for cfg in configs] == [f"runs/{name}" for name in names]
    copies = [Path(f"runs/{name}/submit/1/code/launch/job.py").stat().st_ino for name in names]
    assert len(set(copies)) == 1


def test_an_array_names_each_value_and_a_folder_of_its_own() -> None:
    def suffixes(*arrays: str) -> list[str]:
        return [element.suffix for element in elements(arrays)]

    assert suffixes() == [""]
    assert suffixes("optim.betas=[0.9,0.95],[0.9,0.99]") == ["betas_0.9_0.95", "betas_0.9_0.99"]
    assert suffixes("track.notes=a b,a_b") == ["0-notesa_b", "1-notesa_b"]
    for wrong in ("seed", "seed=", "=1", "seed=1,,2", "seed=1,1", "name=a,b", "run_dir=a,b"):
        with pytest.raises(ValueError, match="--array"):
            elements([wrong])
    with pytest.raises(ValueError, match="given twice"):
        elements(["seed=1", "seed=2"])
    with pytest.raises(ValueError, match="1,001 runs"):
        elements([f"seed={','.join(map(str, range(1001)))}"])


def test_nothing_is_sent_where_one_element_is_wrong(config, slurm, germinal) -> None:
    code, line = germinal.refusal("submit", config, "--array=train.micro_batch=2,3")
    assert code == 2 and "train.micro_batch=3" in line
    assert not slurm.calls("sbatch") and not Path("runs").exists()


def test_a_chain_is_one_job_behind_the_other(config, slurm, germinal) -> None:
    code, out, _ = germinal("submit", config, "--chain=3", "--after=77")
    assert code == 0 and "jobs 101, 102, 103" in out
    assert option(slurm.calls("sbatch")[0], "no-requeue") == ""
    found = [option(words, "dependency") for words in slurm.calls("sbatch")]
    assert found == ["afterany:77", "afterany:101", "afterany:102"]
    assert [job.job for job in submission.jobs(RUN / "submit/1")] == ["101", "102", "103"]


def test_a_refused_job_leaves_nothing(config, slurm, germinal) -> None:
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Invalid account\n")
    code, line = germinal.refusal("submit", config)
    assert code == 1 and line == "error: sbatch refused the job: Batch job submission failed: Invalid account"
    assert not list((RUN / "submit").glob("[0-9]*"))


@pytest.mark.parametrize("answer", ["exec sleep 60", "echo Submitted batch job 43"])
def test_a_job_that_may_have_been_sent_keeps_its_folder(answer, config, slurm, germinal, monkeypatch) -> None:
    """Where it was sent, it runs what lies there."""
    monkeypatch.setattr(programs, "SENDING", 0.3)
    (slurm.folder / "sbatch").write_text(f"#!/bin/bash\n{answer}\n")
    code, line = germinal.refusal("submit", config)
    assert code == 1 and "look with squeue" in line
    assert submission.read(RUN / "submit/1").run == "tiny"


def test_an_array_says_what_was_sent_before_a_refusal(config, slurm, germinal) -> None:
    (slurm.folder / "sbatch").write_text(
        "#!/bin/bash\nfull=$(dirname $0)/full\n"
        '[ -f $full ] && { echo "sbatch: error: full" >&2; exit 1; }\n'
        "touch $full; echo 7\n"
    )
    code, out, err = germinal("submit", config, "--array=seed=1,2,3")
    assert code == 1 and "tiny-seed1: job 7" in out
    assert "1 of 3 runs were sent; not sent: tiny-seed2, tiny-seed3" in err and "refused the job: full" in err


def test_ctrl_c_while_a_job_is_sent_does_not_lose_the_job(config, slurm, tmp_path) -> None:
    (slurm.folder / "sbatch").write_text("#!/bin/bash\ntouch called; sleep 1; echo 7\n")
    command = [sys.executable, "-P", "-m", "launch.cli", "submit", config]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not Path("called").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to sbatch, too
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert [job.job for job in submission.jobs(RUN / "submit/1")] == ["7"]


def test_of_two_submissions_at_the_same_time_one_is_sent(config, slurm) -> None:
    """sbatch takes a moment; from then on squeue shows the job."""
    (slurm.folder / "sbatch").write_text(
        '#!/bin/bash\nsleep 0.3; echo "7|PENDING|None|N/A|1:00||1" >> "$(dirname "$0")/squeue.out"\n'
        "echo x >> sent; echo 7\n"
    )
    command = [sys.executable, "-P", "-m", "launch.cli", "submit", config]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 75], said
    assert Path("sent").read_text() == "x\n"


def test_ranks_and_gpus_of_a_node_that_differ_are_warned_of(config, slurm, germinal) -> None:
    for gpus, says in (("a100:8", "GPUs stay idle"), ("1", "share one"), ("2", "")):
        err = germinal("submit", config, "--dry-run", "--nproc=2", f"--gpus-per-node={gpus}")[2]
        assert ("nproc=2" in err) == bool(says) and says in err


def test_a_site_that_prints_more_is_understood(config, slurm, germinal) -> None:
    (slurm.folder / "sbatch").write_text("#!/bin/bash\necho Welcome to 12 nodes\necho '42;big'\n")
    assert "job 42," in germinal("submit", config)[1]
    (slurm.folder / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 43\n")
    slurm.queue()
    code, line = germinal.refusal("submit", config)
    assert code == 1 and "printed no job id" in line


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--sbatch=output=x"], "germinal sets --output itself"),
        (["--sbatch=outp=x"], "germinal sets --output itself"),
        (["--sbatch=wrap=id"], "germinal sets --wrap itself"),
        (["--sbatch=array=0-3"], "give --array"),
        (["--sbatch=nodes=3"], "give --nodes"),
        (["--nodes=0"], "nodes=0: must be at least 1"),
        (["--time=2"], "signal_seconds=180"),
        (["--time=1:5"], "signal_seconds=180"),
        (["--time=4"], "signal_seconds=180"),  # SLURM may send the signal 60 s before
        (["--partition=bad"], "partition=bad: there is no such partition: known: tiny, big"),
        (["--partition=big,bad"], "partition=bad"),
        (["--partition=tiny", "--time=61"], "more than the partition tiny allows, 1:00:00"),
        (["--partition=tiny", "--nodes=3"], "nodes=3: the partition tiny has 2"),
        (["--nproc=3"], "train.global_batch=8"),
        (["--after=nobody"], "nobody"),
        (["--array=nonsense=1,2"], "nonsense"),
        (["--backend=local", "--nodes=2"], "nodes=2: --backend local is this one machine"),
        (["--backend=local", "--chain=2"], "--chain: needs a queue"),
        (["--backend=kubernetes", "--container=i"], "missing: --dry-run (a manifest is written"),
        (["--cluster=none"], "config configs/cluster/none.yaml: no such file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(words, names, config, slurm, germinal) -> None:
    slurm.answers("sinfo", "tiny|1:00:00|2\nbig|infinite|100\nbig|infinite|4\n")
    code, line = germinal.refusal("submit", config, *words)
    assert code == 2 and names in line
    assert not slurm.calls("sbatch")


def test_what_is_right_passes_the_same_checks(config, slurm, germinal) -> None:
    slurm.answers("sinfo", "tiny|1:00:00|2\nbig|infinite|100\n")
    assert germinal("submit", config, "--partition=tiny", "--time=60", "--nodes=2", "--sbatch=gpus=2")[0] == 0


def test_without_slurm_it_says_where_to_go(config, germinal, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, line = germinal.refusal("submit", config)
    assert code == 1 and "login node" in line and "--backend local" in line
    code, out, _ = germinal("submit", config, "--dry-run")
    assert code == 0 and "sbatch --parsable --job-name=tiny" in out and script.TEXT in out
    assert not Path("runs").exists()


def test_what_belongs_to_another_job_is_not_handed_on(config, slurm, germinal, monkeypatch) -> None:
    (slurm.folder / "sbatch").write_text('#!/bin/bash\nenv > "$(dirname "$0")/env"\necho 5\n')
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SQUEUE_STATES"):
        monkeypatch.setenv(name, "foreign")
    monkeypatch.setenv("SLURM_CONF", "kept")
    germinal("submit", config)
    seen = (slurm.folder / "env").read_text()
    assert "foreign" not in seen and "SLURM_CONF=kept" in seen


def test_a_folder_of_this_machine_is_warned_of(config, slurm, germinal) -> None:
    assert "warning: " in germinal("submit", config)[2]  # pytest's folder is under /tmp, or on a local disk
