"""The configuration of the SLURM of the tests: its nodes, its partitions, slurm.conf."""

_TWO = ("n1", "n2")
PARTITIONS = {
    "tiny": _TWO,
    "three": ("n1", "n2", "n3"),
    "nameless": ("u1", "u2"),
    "cheap": _TWO,
    "urgent": _TWO,
}
SHARED = "OverSubscribe=FORCE:4 PreemptMode=OFF"
OPTIONS = {
    "cheap": "OverSubscribe=NO PriorityTier=1 PreemptMode=CANCEL GraceTime=0",
    "urgent": "OverSubscribe=NO PriorityTier=2 PreemptMode=OFF",
}
NODES = ("n1", "n2", "n3", "u1", "u2")
# SLURM holds a job that was requeued for as long as a credential lives: 120 s by default, 5 s at the least.
HOLD_SECONDS = 5

CONFIG = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={hold}
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdTimeout=10
MessageTimeout=10
KillWait=30
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""
