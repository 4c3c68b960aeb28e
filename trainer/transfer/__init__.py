"""`germinal transfer`: what pre-training is worth, as score against the number of labels.

    plan.py       which fine-tunings there are, and which learning rate each has: begin here
    labels.py     which documents' labels a fine-tuning is given
    records.py    what is known of finished fine-tunings
    table.py      mean, spread and difference over seeds, as a table and a document
    picture.py    score against the number of labels
    trial.py      one fine-tuning, by the trainer
    command.py    the process that does a share of them

The first five import no torch.
"""
