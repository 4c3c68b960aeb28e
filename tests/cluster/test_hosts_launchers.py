"""The launchers of others start a run on two hosts, each in its own way."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from host_runs import RANK, assert_undisturbed, end_of_all, undisturbed, write_run
from host_ssh import let_in_by_ssh
from hosts import hosts, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]
DEEPSPEED = {
    "module": ("--module", "trainer"),
    "command": ("--no_python", str(Path(sys.executable).with_name("germinal")), "rank"),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("launchers"), train__steps=20)


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="deepspeed starts its hosts by pdsh")
@pytest.mark.parametrize("entry", DEEPSPEED)
def test_deepspeed_over_ssh(config: Path, tmp_path: Path, entry: str) -> None:
    run = tmp_path / "run"
    (tmp_path / "hostfile").write_text("h1 slots=1\nh2 slots=1\n")
    with hosts(tmp_path) as pair:
        let_in_by_ssh(pair, tmp_path)
        launcher = pair[0].start(
            "deepspeed", f"--hostfile={tmp_path}/hostfile", *DEEPSPEED[entry], config, f"run_dir={run}"
        )
        assert launcher.end(120.0) == 0, launcher.said()[-6000:]
    assert_undisturbed(run, undisturbed(config))


def test_accelerate_on_two_machines(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path) as pair:
        starts = []
        for number, host in enumerate(pair):
            machine = {
                "compute_environment": "LOCAL_MACHINE",
                "distributed_type": "MULTI_GPU",  # which starts ranks on a CPU too; MULTI_CPU wants MPI
                "num_machines": 2,
                "machine_rank": number,
                "main_process_ip": "h1",
                "main_process_port": 29500,
                "num_processes": 2,
                "rdzv_backend": "static",
                "same_network": True,
                "use_cpu": False,
            }
            settings = tmp_path / f"accelerate{number}.yaml"
            settings.write_text(yaml.safe_dump(machine))
            command = ("accelerate", "launch", f"--config_file={settings}", "-m", "trainer")
            starts.append(host.start(*command, config, f"run_dir={run}"))
        codes, _ = end_of_all(starts, 120.0)
        assert codes == [0, 0], "\n".join(start.said()[-4000:] for start in starts)
    assert_undisturbed(run, undisturbed(config))


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_mpirun_over_two_hosts(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path) as pair:
        let_in_by_ssh(pair, tmp_path)
        passed = [
            word
            for name in ("MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "PATH", "OMP_NUM_THREADS")
            for word in ("-x", name)
        ]
        launcher = pair[0].start(
            *("mpirun", "--allow-run-as-root", "--host", "h1:2,h2:2", "-n", "4", *passed),
            *RANK,
            config,
            f"run_dir={run}",
            env={"MASTER_ADDR": "h1", "MASTER_PORT": "29500"},
        )
        assert launcher.end(120.0) == 0, launcher.said()[-6000:]
    assert_undisturbed(run, undisturbed(config, nproc=4))
