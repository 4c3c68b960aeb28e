"""Before the first step. `trainer.run.assemble` calls these in this order:

opening.py     layout and stream, opened on every rank; the identity that checkpoints keep
agreement.py   do all ranks have the same config, code, corpora and run folder?
claim.py       the run folder is taken by this start, and the run described in it
left_out.py   tells of documents that are longer than a row
engine.py      the engine of the config's model, objective and optimiser
"""
