"""What a run has trained, read back from its folder: for generating text, exporting, evaluating,
fine-tuning. A Hugging Face folder may stand in its place.

checkpoints.py     which checkpoint is read: the newest that verifies, or that of a step
trained_model.py   on one device: its model, tokenizer and what prompts need
weights.py         a checkpoint's weights → a whole model on one device, or its part on each tp rank
sampling.py        model and ids → ids: the loop over tokens, temperature, top-p; many texts at once
decoding.py        on several ranks that share the model, to write texts
on_ranks.py        on any layout: an engine that evaluates
ends.py            which tokens end what is written
tokenizer.py       the run's tokenizer, proven to be the one that the checkpoint was trained with
"""
