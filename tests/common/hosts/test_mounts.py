"""Which mounted file system a folder lies on, and whether its locks hold between hosts."""

from pathlib import Path

import pytest

from common.hosts import mounts
from common.hosts.mounts import Mount, mount_of
from launch.cluster.cluster import Cluster
from launch.cluster.preflight import not_shared

ROOT = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two mounts at one place, one below it, and one whose name only begins alike."""
    lines = [
        f"60 22 0:50 / {tmp_path}/runs/inner rw,nosuid - nfs4 server:/a rw,hard",
        ROOT,
        f"61 22 0:51 / {tmp_path}/runs rw shared:7 master:2 - autofs none rw",
        f"62 22 0:52 / {tmp_path}/runs rw - lustre server:/b rw,flock",
        f"63 22 0:53 / {tmp_path}/run rw - tmpfs none rw",
        f"64 22 0:54 / {tmp_path}/with\\040a\\134blank rw - xfs /dev/vdb rw",
    ]
    write(tmp_path, monkeypatch, lines)
    return tmp_path


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    file = folder / "mountinfo"
    file.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "MOUNTS", file)


def test_the_deepest_mount_counts_and_of_one_place_the_last(mounted: Path) -> None:
    assert mount_of(mounted / "runs/mine") == Mount(mounted / "runs", "lustre", ("rw", "flock"))
    assert mount_of(mounted / "runs/inner") == Mount(mounted / "runs/inner", "nfs4", ("rw", "nosuid", "hard"))
    assert mount_of(mounted / "other") == Mount(Path("/"), "ext4", ("rw", "relatime", "errors=remount-ro"))
    assert mount_of(mounted / "with a\\blank/runs") == Mount(mounted / "with a\\blank", "xfs", ("rw",))


def test_a_link_leads_to_the_mount_of_what_it_names(mounted: Path) -> None:
    (mounted / "link").symlink_to(mounted / "runs")
    found = mount_of(mounted / "link" / "mine")
    assert found is not None and found.kind == "lustre"


def test_the_mount_of_a_real_folder_is_known() -> None:
    found = mount_of(Path("/"))
    assert found is not None and found.point == Path("/") and found.kind


def test_a_system_that_tells_of_no_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mount_of(Path("/")) is None


# As kernels print them: the type, the device, and the options of the file system, after the dash.
NFS = "rw,vers={},rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys"
REACHES = {
    f"nfs4 server:/home {NFS.format('4.2')},clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1": True,
    f"nfs server:/home {NFS.format('3')},mountproto=udp,local_lock=none,addr=10.0.0.1": True,
    f"nfs server:/home {NFS.format('3')},nolock,mountproto=tcp,local_lock=all,addr=10.0.0.1": False,
    f"nfs server:/home {NFS.format('3')},mountproto=tcp,local_lock=flock,addr=10.0.0.1": False,
    f"nfs server:/home {NFS.format('3')},mountproto=tcp,local_lock=posix,addr=10.0.0.1": True,
    "lustre 10.0.0.1@o2ib:10.0.0.2@o2ib:/scratch rw,checksum,flock,user_xattr,lruresize,lazystatfs": True,
    "lustre 10.0.0.1@o2ib:/scratch rw,checksum,localflock,user_xattr,lruresize,lazystatfs": False,
    "lustre 10.0.0.1@o2ib:/scratch rw,checksum,nouser_xattr,lruresize,lazystatfs": False,  # noflock
    "fuse.sshfs me@server:/home rw,user_id=1000,group_id=1000": False,
    "fuse gcsfuse rw,user_id=0,group_id=0,default_permissions": False,
    "fuse.juicefs JuiceFS:mine rw,user_id=0,group_id=0,default_permissions,allow_other": True,
    "ceph 10.0.0.1:6789:/ rw,name=admin,secret=<hidden>,acl": True,
    "gpfs scratch rw,relatime": True,
    "beegfs beegfs_nodev rw,relatime,cfgFile=/etc/beegfs/beegfs-client.conf": False,
    "cifs //server/home rw,vers=3.1.1,nobrl,addr=10.0.0.1": False,
    "smb3 //server/home rw,vers=3.1.1,addr=10.0.0.1": True,
    "virtiofs home rw,relatime": False,
    "xfs /dev/nvme0n1p1 rw,attr2,inode64,logbufs=8": True,
    "tmpfs tmpfs rw,size=1024k": True,
}


@pytest.mark.parametrize("line", REACHES, ids=lambda line: line[:60])
def test_locks_of_which_mounts_reach_other_hosts(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, monkeypatch, [ROOT, f"65 22 0:55 / {tmp_path} rw,relatime shared:9 - {line}"])
    found = mount_of(tmp_path / "run")
    assert found is not None and found.locks_reach_other_hosts == REACHES[line]


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("nfs4 server:/home rw,vers=4.2,actimeo=60", True),
        ("nfs4 server:/home rw,vers=4.2,nocto,actimeo=60", False),
        ("fuse.sshfs me@server:/home rw", False),
        ("lustre 10.0.0.1@o2ib:/scratch rw", True),
    ],
)
def test_which_mounts_answer_an_open_from_a_cache(
    line: str, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, monkeypatch, [f"65 22 0:55 / {tmp_path} rw - {line}"])
    found = mount_of(tmp_path)
    assert found is not None and found.opens_ask_the_server == asks


def test_a_job_is_warned_of_a_disk_that_other_machines_do_not_see(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's own folder is below /tmp, of which there is a warning whatever is mounted there."""
    cluster = Cluster(nodes=2, nproc=1)
    assert "in a folder of this machine's own" in not_shared(mounted / "runs", cluster)
    assert "on a disk of this machine (ext4)" in not_shared(Path("/home/me/runs"), cluster)
    write(mounted, monkeypatch, ["66 22 0:56 / / rw - nfs4 server:/c rw"])
    assert not_shared(Path("/home/me/runs"), cluster) == ""
