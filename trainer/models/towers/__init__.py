"""Models that embed the two sides of a row, for objectives that compare rows.

head.py              pooled hidden states → embedding, and the learnt scale and bias of the scores

text_pair_config.py  one encoder for two texts: its keys and facts
text_pair.py         the model
"""
