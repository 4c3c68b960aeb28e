"""The encoder: a transformer whose tokens attend in both directions. BERT and ModernBERT are configs of it.

config.py     its keys, and its facts: parameters, FLOPs, the layouts it fits
plan.py       how it is cut, sharded and drawn
encoder.py    embeddings, blocks, norm and heads; any consecutive part of them is a pipeline stage
block.py      one transformer block, with its norms behind the sums or before
heads.py      what is predicted: tokens at given places, and whether one sentence follows another
pooled.py, pooled_config.py
              an encoder that pools the hidden states of texts
text_classes.py, text_classes_config.py
              an encoder that tells classes of texts apart
token_classes.py, token_classes_config.py
              an encoder that tells classes of tokens apart
"""
