"""What is done to a model, block by block, before it runs on many devices."""
