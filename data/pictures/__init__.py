"""Pictures: from the bytes of a file to the pixels that a model is given.

decode     a file's bytes → an upright RGB picture; what is no picture, or too large, is refused
augment    which crop, flip and colours a view has, by hashes of the sequence number
decoders   threads that read, decode and augment the pictures of a batch ahead of need
"""
