"""`germinal finetune`: train a model further that begins from another one's weights."""

import argparse

from launch import options
from launch.begin.train import add_debug_options, train
from launch.checks import check_job
from launch.job import Job


def add_command(add: options.AddCommand) -> None:
    parser = add("finetune", "turn a model to a task: train what finetune.method says of model.init_from")
    options.add_job(parser)
    add_debug_options(parser)
    parser.set_defaults(run=finetune)


def finetune(args: argparse.Namespace) -> int:
    """Do what `germinal train` does, once it is known that the run has something to begin from. Every
    parameter is trained where the config names no method.
    """
    from trainer.models.config import init_from

    cfg = check_job(Job(args.config, tuple(args.overrides), args.nproc))
    if not init_from(cfg.model):
        raise ValueError(
            "model.init_from: germinal finetune begins from a model: give a Hugging Face folder, RUN or "
            "RUN@STEP; germinal train begins from new weights"
        )
    if cfg.finetune.method == "none":
        args.overrides = [*args.overrides, "finetune.method=full"]
    return train(args)
