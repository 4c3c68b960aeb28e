"""The config of a run: YAML and `key=value` → checked dataclasses, before anything expensive starts.

run_config.py   RunConfig, the dataclass of a whole run
reading.py      `load`: file and overrides → a checked RunConfig; `dump`: RunConfig → YAML
transferring.py  the config of `germinal transfer`: two configs of runs, and what is compared
evaluating.py   the config of a trained run on another layout, to evaluate it
adapter_keys.py  the keys of `finetune:` that an adapter on disk gives
checks.py       what keys must agree on; `layout`: the layout of a run on so many ranks
sections.py     the sections that are the trainer's own: optim, train, checkpoint, track
yaml_files.py   files, `base:` and `key=value` → one mapping, by OmegaConf
schema.py       mapping → dataclasses, with errors that name the nearest right key
keys.py         what each field declares of its key (meaning, unit, bounds, rules), and the check of it
plain.py        a config as plain mappings, lists and values
"""
