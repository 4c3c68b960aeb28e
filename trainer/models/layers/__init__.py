"""What models are put together from. A layer takes sizes, never a model's config.

linear.py, norm.py, feed_forward.py   linear layer and embedding, RMSNorm, SwiGLU
shared.py             what all blocks of a forward share: rotary tables, attention mask
attention.py          grouped-query attention: causal, document by document, with a cache of the past

The output layer and its loss, from the outside in:

head.py               hidden states → logits, or a loss
cross_entropy.py      the loss and its gradients, a chunk of logits at a time
softmax.py            the softmax of one chunk, eager or fused, of a whole or a split vocabulary
known_gradients.py    autograd nodes for gradients that forward has found already
"""
