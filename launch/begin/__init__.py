"""Commands that begin work, a file each: its arguments (`add_command`), then what it does.

prepare.py    make a corpus, in this process and its workers
train.py      check a job, then start its ranks on this machine; --debug: look into the run
finetune.py   the same, for a model that begins from another one
submit.py     check a job, then send it to a batch system
verify.py     one process as the reference, then the layout, compared
rank.py       become one rank that another launcher starts
attach.py     be the terminal of a rank that is in pdb
generate.py   become the process that continues a text
transfer.py   a run, and many fine-tunings of it: what pre-training is worth
evaluate.py   the ranks that measure what trained runs can do
export.py     become the process that writes a Hugging Face folder
"""
