"""Which mounted file system a folder lies on."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from launch.cluster.cluster import Cluster
from launch.cluster.preflight import not_shared
from launch.mounts import Mount, mount_of

Entry = namedtuple("Entry", ("device", "mountpoint", "fstype", "opts"))


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two mounts at one place, one below it, and one whose name only begins alike."""
    entries = [
        Entry("server:/a", f"{tmp_path}/runs/inner", "nfs4", "rw,hard"),
        Entry("/dev/vda", "/", "ext4", "rw,relatime"),
        Entry("none", f"{tmp_path}/runs", "autofs", "rw"),
        Entry("server:/b", f"{tmp_path}/runs", "lustre", "rw,flock"),
        Entry("none", f"{tmp_path}/run", "tmpfs", "rw"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: entries if all else [])
    return tmp_path


def test_the_deepest_mount_counts_and_of_one_place_the_last(mounted: Path) -> None:
    assert mount_of(mounted / "runs/mine") == Mount(mounted / "runs", "lustre", ("rw", "flock"))
    assert mount_of(mounted / "runs/inner") == Mount(mounted / "runs/inner", "nfs4", ("rw", "hard"))
    assert mount_of(mounted / "other") == Mount(Path("/"), "ext4", ("rw", "relatime"))


def test_a_link_leads_to_the_mount_of_what_it_names(mounted: Path) -> None:
    (mounted / "link").symlink_to(mounted / "runs")
    found = mount_of(mounted / "link" / "mine")
    assert found is not None and found.kind == "lustre"


def test_the_mount_of_a_real_folder_is_known() -> None:
    found = mount_of(Path("/"))
    assert found is not None and found.point == Path("/") and found.kind


def test_a_system_that_tells_of_no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(all: bool) -> None:
        raise FileNotFoundError("/proc/filesystems")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    assert mount_of(Path("/")) is None


def test_a_job_is_warned_of_a_disk_that_other_machines_do_not_see(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's own folder is below /tmp, of which there is a warning whatever is mounted there."""
    cluster = Cluster(nodes=2, nproc=1)
    assert "in a folder of this machine's own" in not_shared(mounted / "runs", cluster)
    assert "on a disk of this machine (ext4)" in not_shared(Path("/home/me/runs"), cluster)
    entries = [Entry("server:/c", "/", "nfs4", "rw")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: entries)
    assert not_shared(Path("/home/me/runs"), cluster) == ""
