"""One host: what listens there, and whose `trainer` a launcher imports."""

from pathlib import Path

import pytest

from host_runs import ENTRIES, assert_undisturbed, undisturbed, until_step, write_run
from hosts import Host, hosts, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]
LAUNCHERS = {
    "germinal train": ("germinal", "train"),
    "torchrun": ("torchrun", "--standalone", "--nproc-per-node=2", *ENTRIES["module"]),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("alone"), train__steps=20)


def listeners(host: Host) -> dict[str, set[str]]:
    """Program → the addresses at which it listens."""
    found: dict[str, set[str]] = {}
    for line in host.run("ss", "-Hltnp").splitlines():
        _, _, _, address, _, users = line.split()
        program = users.removeprefix('users:(("').partition('"')[0]
        found.setdefault(program, set()).add(address.rpartition(":")[0].strip("[]"))
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_one_host_listen_on_loopback_alone(config: Path, tmp_path: Path, launcher: str) -> None:
    run = tmp_path / "run"
    words = [*LAUNCHERS[launcher], config, f"run_dir={run}", "train.steps=100000"]
    with hosts(tmp_path, 1, debian=True) as (host,):
        process = host.start(*words, *(("--nproc", "2") if launcher == "germinal train" else ()))
        until_step(run, 3, process)
        found = listeners(host)
    found.pop("pt_elastic", None)  # torchrun's agent, whose ports are its own affair
    assert found, "the ranks do not listen at all"
    assert set().union(*found.values()) <= {"127.0.0.1", "::1"}, found


def test_a_folder_with_a_trainer_and_data_of_its_own_shadows_nothing(config: Path, tmp_path: Path) -> None:
    for package in ("trainer", "data"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the own package was imported')\n")
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2")
    with hosts(tmp_path, 1) as (host,):
        by_command = host.start(*torchrun, *ENTRIES["command"], config, f"run_dir={tmp_path / 'run'}")
        assert by_command.end(120) == 0, by_command.said()[-4000:]
        by_module = host.start(*torchrun, *ENTRIES["module"], config, f"run_dir={tmp_path / 'other'}")
        assert by_module.end(120) == 1 and "the own package was imported" in by_module.said()
    assert_undisturbed(tmp_path / "run", undisturbed(config))
