"""Commands that show what is there, a file each: its arguments (`add_command`), then what it does.

corpus.py       `germinal data`: what is in a corpus, what a sequence of a run is, is every byte right
checkpoint.py   `germinal checkpoint`: the checkpoints of a run, and is every byte of them right
reference.py    `germinal config`: every key of a config
status.py       `germinal status`: how runs are, and how far
logs.py         `germinal logs`: what the jobs of a run printed
follow.py       `germinal follow`: state and steps as they change, until the end
cancel.py       `germinal cancel`: out of the queue, or save and end
plot.py         `germinal plot`: curves of runs as a picture
doctor.py       `germinal doctor`: is this machine, and this cluster, fit to train
"""
