"""What the batch step believes of its job."""

from launch.cluster.batch.allocation import Allocation, JobState

ALLOCATION = Allocation("7", 0, ("n1", "n2"))


def test_the_state_of_the_job_comes_from_columns_of_squeue(slurm) -> None:
    slurm.answers("squeue", f"{'RUNNING':<40}{'None':<80}{'2':<20}{'n[1-2]':<16384}\n")
    # As `scontrol show job` prints it: what comes later may be a folder of the user's.
    hostile = "JobState=CANCELLED Restarts=9"
    slurm.answers(
        "scontrol", f"JobId=7 JobName=x {hostile} JobState=RUNNING Restarts=2 WorkDir=/a {hostile}\n"
    )
    assert ALLOCATION.state() == JobState("RUNNING", "None", 2, "n[1-2]")
    (asked,) = slurm.calls("squeue")
    assert "--jobs=7" in asked and "--Format=State:40,Reason:80,RestartCnt:20,NodeList:16384" in asked


def test_nothing_is_known_where_squeue_does_not_answer(slurm) -> None:
    assert ALLOCATION.state() == JobState()
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert ALLOCATION.state() == JobState()
