"""What a run has trained, read back from its folder: for generating text, exporting, evaluating, fine-tuning.

trained_model.py   a run's checkpoint, newest or of a step → its model, tokenizer and what prompts need
weights.py         a checkpoint's weights → a whole model on one device
tokenizer.py       the run's tokenizer, proven to be the one that the checkpoint was trained with
"""
