"""The `parallel:` section of a run's config. Torch-free; what it means is worked out in
`parallel.layout.layout`.

A field states its key's meaning and limits in plain text; `trainer.config.keys` says how, and checks them.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

Engine = Literal["torch", "deepspeed"]
Zero = Literal[0, 1, 2, 3]
PipelineSchedule = Literal[
    "gpipe",
    "1f1b",
    "interleaved_1f1b",
    "looped_bfs",
    "interleaved_zero_bubble",
    "zbv_zero_bubble",
    "dualpipe_v",
]
Attention = Literal["auto", "sdpa", "flash3"]
Offload = Literal["none", "cpu", "nvme"]


@dataclass
class LayoutConfig:
    """A layout for some number of ranks; see `parallel.layouts`."""

    dp_replicate: Annotated[int, "as parallel.dp_replicate", "-1 or ≥ 1"] = 1
    dp_shard: Annotated[int, "as parallel.dp_shard", "-1 or ≥ 1"] = -1
    cp: Annotated[int, "as parallel.cp", "-1 or ≥ 1"] = 1
    tp: Annotated[int, "as parallel.tp", "-1 or ≥ 1"] = 1
    pp: Annotated[int, "as parallel.pp", "-1 or ≥ 1"] = 1
    micro_batch: Annotated[
        int, "what a rank handles at once in this layout; 0: train.micro_batch", "≥ 0", "in sequences"
    ] = 0


@dataclass
class ParallelConfig:
    """How one model lies over many devices. Nothing here changes the result of a run.

    `dp_replicate · dp_shard · cp · tp · pp` is the number of ranks; one of them may be -1, "what is left of
    the world".
    """

    engine: Annotated[Engine, "what runs the model: FSDP2, DTensor and torch's pipelines, or DeepSpeed"] = (
        "torch"
    )
    dp_replicate: Annotated[
        int,
        "copies of the model, each divided over dp_shard ranks as parallel.zero says (HSDP)",
        "-1 or ≥ 1",
        "not with parallel.engine=deepspeed",
    ] = 1
    dp_shard: Annotated[int, "data ranks that share one copy, as far as parallel.zero says", "-1 or ≥ 1"] = -1
    cp: Annotated[
        int,
        "context parallelism: ranks that share each sequence, and its heads in attention",
        "-1 or ≥ 1",
        "not with parallel.engine=deepspeed",
    ] = 1
    tp: Annotated[
        int,
        "tensor parallelism, with sequence parallelism and a vocabulary-sharded head",
        "-1 or ≥ 1",
        "not with parallel.engine=deepspeed",
    ] = 1
    async_tp: Annotated[
        bool,
        "hide tensor parallelism's messages behind its matrix products: GPUs of one machine with NVLink",
        "needs train.fp8=none (its products are of 16 bits)",
    ] = False
    pp: Annotated[
        int,
        "pipeline parallelism: ranks the layers are cut over",
        "-1 or ≥ 1",
        "not with parallel.engine=deepspeed",
    ] = 1
    layouts: Annotated[
        list[LayoutConfig],
        "sizes in place of dp_replicate, dp_shard, cp, tp and pp: a start takes the first layout that fits "
        "its number of ranks",
    ] = field(default_factory=list)
    zero: Annotated[
        Zero,
        "what is divided among data ranks instead of copied: 0 nothing, 1 optimiser state, 2 and gradients, "
        "3 and parameters",
    ] = 1
    schedule: Annotated[
        PipelineSchedule,
        "the order of a pipeline's micro-batches",
        "interleaved_zero_bubble or zbv_zero_bubble or dualpipe_v: not with parallel.compile=true (it splits "
        "backward, and a compiled block's is one piece)",
    ] = "1f1b"
    stages_per_rank: Annotated[
        int, "pipeline stages that a rank holds; 0: what the schedule needs, 1 or 2", "≥ 0"
    ] = 0
    cut: Annotated[
        str,
        "blocks of each pipeline stage: equally many, by cost (embedding and head counted), or these",
        "like even | cost | N,N…",
    ] = "even"
    recompute: Annotated[
        str,
        "what backward computes again: whole blocks, all but matrix products and attention, or each N-th "
        "block",
        "like none | full | selective | every:N",
        "selective: not with parallel.engine=deepspeed and parallel.zero=3 (its gathering is not repeated "
        "alike)",
    ] = "none"
    attention: Annotated[
        Attention,
        "the attention kernel; flash3: FlashAttention-3 on Hopper, which auto takes where it is installed",
        "needs parallel.engine=torch",
    ] = "auto"
    compile: Annotated[
        bool,
        "torch.compile each block; not on a CPU, where it gains nothing",
        "not with parallel.engine=deepspeed",
    ] = False
    offload_optimizer: Annotated[
        Offload,
        "where optimiser state is kept",
        "needs parallel.engine=deepspeed",
        "needs parallel.zero=1 or 2 or 3",
        "nvme: needs parallel.zero=3",
        "nvme: needs parallel.nvme_path",
    ] = "none"
    offload_parameters: Annotated[
        Offload,
        "where parameters are kept",
        "needs parallel.engine=deepspeed",
        "needs parallel.zero=3",
        "nvme: needs parallel.nvme_path",
    ] = "none"
    nvme_path: Annotated[str, "folder on a local disk, for what is offloaded to nvme"] = ""
    timeout_seconds: Annotated[
        float, "how long ranks wait for each other: at the start, and in each collective", "> 0", "in seconds"
    ] = 600.0
