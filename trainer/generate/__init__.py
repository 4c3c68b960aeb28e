"""A trained run continues a text. Read in this order:

command.py            the process of `germinal generate`
text.py               run and prompt → text, as it is written
training_samples.py   the process that a training run starts to sample its checkpoints

The model, its weights, its tokenizer and the loop over tokens come from trainer/trained.
"""
