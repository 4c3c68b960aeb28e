"""All checks of one machine, in the order in which they are made."""

from functools import partial

from launch.doctor.check import Check, Circumstances
from launch.doctor.checks import folder, gpus, interfaces, machine, measures, names, slurm, software
from launch.doctor.finding import Level

AGAIN = "the machine may be overloaded: see `top`, then try again"


def checks(at: Circumstances) -> list[Check]:
    """The checks that suit the circumstances; each folder has one of its own."""
    before = [
        Check(
            "software",
            software.check,
            20,
            Level.WARNING,
            f"the disk with Python's packages is slow, or {AGAIN}",
        ),
        Check("machine", machine.check, 15, Level.WARNING, AGAIN),
        Check(
            "gpus",
            gpus.check,
            60,
            Level.ERROR,
            "a GPU or its driver hangs: see `dmesg`, drain and reboot the node",
        ),
        Check("names", names.check, 20, Level.WARNING, "a name server does not answer: see /etc/resolv.conf"),
        Check("network", interfaces.check, 10, Level.WARNING, AGAIN),
        Check("slurm", slurm.check, 20, Level.WARNING, "slurmctld does not answer: see `scontrol ping`"),
    ]
    folders = [
        Check("folder", partial(folder.check, folder=place), 30, Level.ERROR,
              f"the file system under {place} hangs or is very slow: see `mount`, or choose another folder")
        for place in at.folders
    ]  # fmt: skip
    return [
        *before,
        *folders,
        Check(
            "speed",
            measures.check,
            90,
            Level.WARNING,
            f"torch did not start or did not compute in time: {AGAIN}",
        ),
    ]
