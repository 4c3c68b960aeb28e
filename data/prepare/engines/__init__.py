"""What runs the tasks of a preparation. The bytes that come out are the same whatever it is.

- `chosen.py`: read first; the engine that `--on` names.
- `local.py`: processes of this machine.
- `on_ray.py`: a Ray cluster, or one that the command starts on this machine. `same_everywhere.py`: does each
  of its processes see the same folder, and have the same code and libraries?
- `attempts.py`: what one attempt at a task is, wherever it runs.

The work on a task (`data.prepare.survey`, `encode`, `duplicates`) imports nothing from here.
"""
