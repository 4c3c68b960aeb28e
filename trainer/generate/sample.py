"""Continue prompts with a checkpoint: `python -m trainer.generate.sample RUN STEP TOKENS PROMPT…`, a JSON
object each.

For `trainer.metrics.samples`; people use `germinal generate`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from common.exit_codes import DONE, FAILED
from common.standard_error import complain
from trainer.checkpoint import folder as checkpoints
from trainer.config import run_config as configs
from trainer.folder import run_folder
from trainer.generate.generate import load_checkpoint, write_after
from trainer.process.interrupts import LeaveAtOnce

NICE = 10  # training comes first


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Print {step, prompt, text} for each prompt; returns the exit code."""
    run, step, tokens, *prompts = arguments
    os.nice(NICE)
    torch.set_num_threads(1)
    try:
        cfg = configs.load(Path(run) / run_folder.CONFIG)
        folder = checkpoints.step_folder(Path(run) / "checkpoints", int(step))
        checkpoints.verify(folder)
        loaded = load_checkpoint(cfg, Path(run), folder, device="cpu")
        for prompt in prompts:
            text = "".join(write_after(loaded, prompt, max_tokens=int(tokens)))
            print(json.dumps({"step": int(step), "prompt": prompt, "text": text}), flush=True)
    except (ValueError, RuntimeError, OSError) as error:
        return complain(error, FAILED)
    return DONE
