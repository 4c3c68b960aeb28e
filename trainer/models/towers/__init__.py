"""Models that embed the two sides of a row, for objectives that compare rows.

head.py              pooled hidden states → embedding, and the learnt scale and bias of the scores

learnt.py            the keys of these, and how they begin

text_pair_config.py  one encoder for two texts: its keys and facts
text_pair.py         the model

image_text_config.py a tower for pictures and one for texts (CLIP, SigLIP): their keys and facts
image_text.py        the model
text_tower.py        its tower for texts; that for pictures is a vision transformer
"""
