"""Pipeline parallelism.

stages.py          cut a model into stages
pipeline.py        run torch's schedules over a rank's stages, with a picture of 1F1B; evaluate
stage.py           one stage, driven by torch's schedules
sends.py           keep sent messages until they are received, and no longer
forward_order.py   which rank runs what when, without backward
"""
