"""`python killer.py WHERE COUNT CONFIG [key=value…]`: one rank of a run that kills itself with SIGKILL.

WHERE: `step`, before the COUNT-th optimiser step; `micro_batch`, inside the COUNT-th micro-batch's loss
(forward done, backward not); `fsync`, at the COUNT-th fsync once training has begun, which is inside a
save; `rename`, likewise.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from parallel.torch_engine.engine import TorchEngine
from trainer.__main__ import main
from trainer.objectives.causal_lm import CausalLM


def dying(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


def armed_at_first_step(where: str, count: int) -> None:
    """Files are written at the start too: count only from the first optimiser step on."""
    step = TorchEngine.step

    def first(*args: Any, **kwargs: Any) -> Any:
        if TorchEngine.step is first:
            TorchEngine.step = step  # type: ignore[method-assign]
            setattr(os, where, dying(getattr(os, where), count))
        return step(*args, **kwargs)

    TorchEngine.step = first  # type: ignore[method-assign]


if __name__ == "__main__":
    where, count, *arguments = sys.argv[1:]
    if where == "step":
        TorchEngine.step = dying(TorchEngine.step, int(count))  # type: ignore[method-assign]
    elif where == "micro_batch":
        CausalLM.loss = dying(CausalLM.loss, int(count))  # type: ignore[method-assign]
    else:
        armed_at_first_step({"fsync": "fsync", "rename": "rename"}[where], int(count))
    sys.exit(main(arguments))
