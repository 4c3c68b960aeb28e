"""What the batch step believes of its job."""

from launch.cluster.batch.allocation import Allocation, JobState

ALLOCATION = Allocation("7", 0, ("n1", "n2"))


def columns(*facts: str) -> str:
    """What squeue prints of a job: State, Reason, RestartCnt, PreemptTime, NodeList."""
    return "".join(fact.ljust(width) for fact, width in zip(facts, (40, 80, 20, 30, 16384))) + "\n"


def test_the_state_of_the_job_comes_from_columns_of_squeue(slurm) -> None:
    slurm.answers("squeue", columns("RUNNING", "None", "2", "N/A", "n[1-2]"))
    # As `scontrol show job` prints it: what comes later may be a folder of the user's.
    hostile = "JobState=CANCELLED Restarts=9"
    slurm.answers(
        "scontrol", f"JobId=7 JobName=x {hostile} JobState=RUNNING Restarts=2 WorkDir=/a {hostile}\n"
    )
    assert ALLOCATION.state() == JobState("RUNNING", "None", 2, "n[1-2]", preempted=False)
    (asked,) = slurm.calls("squeue")
    assert (
        "--jobs=7" in asked
        and "--Format=State:40,Reason:80,RestartCnt:20,PreemptTime:30,NodeList:16384" in asked
    )


def test_a_job_that_has_to_make_way_is_known_by_the_time_at_which_it_was_told(slurm) -> None:
    slurm.answers("squeue", columns("COMPLETING", "None", "0", "2026-11-22T12:05:57", "n1"))
    assert ALLOCATION.state() == JobState("COMPLETING", "None", 0, "n1", preempted=True)


def test_nothing_is_known_where_squeue_does_not_answer(slurm) -> None:
    assert ALLOCATION.state() == JobState()
    slurm.fails("squeue", "slurm_load_jobs error: Invalid job id specified")
    assert ALLOCATION.state() == JobState()


def test_a_node_that_slurm_does_not_reach_is_not_present(slurm) -> None:
    """n3 is not the job's any more; n1 is in two partitions, and so in two lines."""
    slurm.answers("squeue", columns("RUNNING", "None", "0", "N/A", "n[1-2]"))
    slurm.answers("sinfo", "n1 allocated\nn1 allocated\nn2 down*\n")
    assert Allocation("7", 0, ("n1", "n2", "n3")).present() == ("n1",)
    assert slurm.calls("sinfo")[0][2] == "--nodes=n1,n2"
    slurm.fails("sinfo", "slurm_load_partitions: Unable to contact slurm controller")
    slurm.fails("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    assert Allocation("7", 0, ("n1", "n2", "n3")).present() == ("n1", "n2", "n3")


def test_a_requeue_that_is_refused_is_told(slurm) -> None:
    assert ALLOCATION.requeue() == ""
    assert slurm.calls("scontrol") == [["requeue", "7"]]
    slurm.fails("scontrol", "Requested operation is presently disabled for job 7")
    assert ALLOCATION.requeue() == "Requested operation is presently disabled for job 7"
