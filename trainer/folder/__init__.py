"""The folder of a run.

run_folder.py   which run a path on the command line means; the configs and the id in its folder
fence.py        of two starts of one run only the later may write: every writer checks `.epoch` first
"""
