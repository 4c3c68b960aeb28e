"""Objectives of tasks whose tokens are marked (`prepare --task`, data.packing=marked).

config.py         their configs
instruction.py    the next token, of those that the assistant says
tags.py           the tag of each word
entities.py       tags → the stretches that they name
answers.py        where in a context a question's answer begins and ends
squad.py          answers compared as texts
"""
