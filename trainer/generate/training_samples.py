"""The process that `trainer.metrics.samples` starts: a checkpoint of a training run continues given prompts.

`python -m trainer.process.entry trainer.generate.training_samples RUN STEP TOKENS PROMPT…`
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from common.exit_codes import DONE, FAILED
from common.standard_error import complain
from trainer.checkpoint import folder as checkpoints
from trainer.config import reading
from trainer.folder import run_folder
from trainer.generate.text import continue_prompt
from trainer.process.interrupts import LeaveAtOnce
from trainer.trained.trained_model import load_checkpoint

NICE = 10  # training comes first


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Print a JSON object {step, prompt, text} for each prompt; return the exit code."""
    run, step, tokens, *prompts = arguments
    os.nice(NICE)
    torch.set_num_threads(1)
    try:
        cfg = reading.load(Path(run) / run_folder.CONFIG)
        folder = checkpoints.step_folder(Path(run) / "checkpoints", int(step))
        checkpoints.verify(folder)
        trained = load_checkpoint(cfg, Path(run), folder, device="cpu")
        for prompt in prompts:
            text = "".join(continue_prompt(trained, prompt, max_tokens=int(tokens)))
            print(json.dumps({"step": int(step), "prompt": prompt, "text": text}), flush=True)
    except (ValueError, RuntimeError, OSError) as error:
        return complain(error, FAILED)
    return DONE
