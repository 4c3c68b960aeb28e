"""Which of the GPUs that a process sees a rank computes on, from each launcher's variables."""

import pytest
import torch

from parallel.world.device import device_of, gpu_index

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environ", "local_rank", "visible", "index"),
    [
        ({}, 0, 1, 0),
        (TORCHRUN, 3, 8, 3),
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 3, 4, 3),
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "3"}, 3, 1, 0),  # of a wrapper, each rank its own
        (MPIRUN | {"CUDA_VISIBLE_DEVICES": "2,3"}, 1, 2, 1),
        (SRUN | {"SLURM_GPUS_PER_NODE": "8"}, 3, 8, 3),
        (SRUN | {"SLURM_GPUS_PER_NODE": "8", "SLURM_GPU_BIND": "closest"}, 3, 1, 0),
        (SRUN | {"SLURM_GPU_BIND": "map_gpu:0,1,2,3", "CUDA_VISIBLE_DEVICES": "3"}, 3, 1, 0),
        (SRUN | {"SLURM_GPU_BIND": "single:2"}, 3, 2, 1),
        (SRUN | {"SLURM_GPU_BIND": "single:1"}, 3, 1, 0),
        (SRUN | {"SLURM_GPUS_PER_TASK": "1"}, 3, 1, 0),
        (SRUN | {"SLURM_GPUS_PER_TASK": "2"}, 0, 2, 0),
        (SRUN | {"SLURM_GPUS_PER_TASK": "2"}, 3, 2, 0),  # sees its own two
        (SRUN | {"SLURM_GPUS_PER_TASK": "2"}, 3, 8, 6),  # not confined: sees those of all four tasks
        (SRUN | {"SLURM_GPUS_PER_TASK": "1"}, 3, 4, 3),
        (SRUN | {"SLURM_GPUS_PER_TASK": "a100:2"}, 3, 2, 0),
        (SRUN | {"SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:2"}, 3, 2, 0),
        (SRUN | {"SLURM_TRES_PER_TASK": "cpu=4,gres/gpu:h100=1"}, 3, 1, 0),
        (TORCHRUN | {"SLURM_GPUS_PER_TASK": "8", "SLURM_STEP_ID": "0"}, 3, 8, 3),  # torchrun is the task
    ],
)
def test_the_gpu_of_a_rank(environ: dict[str, str], local_rank: int, visible: int, index: int) -> None:
    assert gpu_index(environ, local_rank, visible) == index


@pytest.mark.parametrize(
    ("environ", "local_rank", "visible"),
    [
        (TORCHRUN, 1, 1),
        (TORCHRUN | SRUN, 1, 1),
        (TORCHRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}, 2, 2),
        (SRUN | {"SLURM_GPUS_PER_NODE": "2"}, 2, 2),
        (SRUN | {"SLURM_GPUS_PER_TASK": "2"}, 2, 4),
    ],
)
def test_a_rank_without_a_gpu_is_told(environ: dict[str, str], local_rank: int, visible: int) -> None:
    # No ValueError: a GPU that has failed is no mistake of the command.
    with pytest.raises(
        RuntimeError, match=f"^local rank {local_rank} has no GPU: this machine has {visible}; "
    ):
        gpu_index(environ, local_rank, visible)


def test_a_task_of_srun_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert device_of(SRUN, 1) == torch.device("cuda", 0) and taken == [torch.device("cuda", 0)]
