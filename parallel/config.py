"""The `parallel:` section of a run's config. Torch-free; what it means is worked out in `parallel.plan`."""

from dataclasses import dataclass


@dataclass
class ParallelConfig:
    """How one model lies over many devices. Nothing here changes the result of a run (law 1).

    `dp_replicate · dp_shard · cp · tp · pp` is the number of ranks; one of them may be -1, "what is left of
    the world".
    """

    engine: str = "torch"  # torch | deepspeed
    dp_replicate: int = 1  # data ranks that hold whole copies of one another's shards (HSDP)
    dp_shard: int = -1  # data ranks that share one copy, as far as `zero` says
    cp: int = 1  # context parallelism: ranks that share each sequence, and its heads in attention
    tp: int = 1  # tensor parallelism, with sequence parallelism and a vocabulary-sharded head
    async_tp: bool = False  # hide its messages behind its matrix products: GPUs of one machine with NVLink
    pp: int = 1  # pipeline parallelism
    zero: int = 1  # 0 nothing sharded, 1 optimiser state, 2 and gradients, 3 and parameters
    schedule: str = "1f1b"  # see plan.SCHEDULES
    stages_per_rank: int = 0  # model pieces a pipeline rank holds; 0: what the schedule needs (1 or 2)
    cut: str = "even"  # even | cost (balanced, embedding and head counted) | blocks of each stage: "3,5"
    recompute: str = "none"  # none | full | selective | every:N (each N-th block)
    attention: str = "auto"  # auto | sdpa | flash3: FlashAttention-3, which auto takes where it is installed
    compile: bool = False  # torch.compile each block; never on a CPU, where it gains nothing
    offload_optimizer: str = "none"  # none | cpu | nvme: where engine=deepspeed keeps optimiser state
    offload_parameters: str = "none"  # none | cpu | nvme: where engine=deepspeed keeps parameters (zero=3)
    nvme_path: str = ""  # folder on a local disk, for offloading to nvme
