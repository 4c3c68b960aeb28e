"""A trained run continues a text. Read in this order:

command.py            the process of `germinal generate`
text.py               run and prompt → text, as it is written
sampling.py           model and ids → ids: the loop over tokens, temperature, top-p
training_samples.py   the process that a training run starts to sample its checkpoints

The model, its weights and its tokenizer come from trainer/trained.
"""
