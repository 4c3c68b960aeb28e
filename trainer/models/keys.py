"""Keys that the configs of several models have: type, meaning, limits and unit of each. Imports no torch.

Defaults are each model's own. `trainer.config.keys` parses the strings and checks the limits.
"""

from typing import Annotated

Layers = Annotated[int, "blocks", "≥ 1"]
Hidden = Annotated[int, "width; a multiple of heads", "≥ 1"]
Heads = Annotated[int, "attention heads", "≥ 1"]
FFNHidden = Annotated[int, "width of the feed-forward layer; 0: 4 · hidden", "≥ 0"]
MaybeGatedFFNHidden = Annotated[
    int,
    "width of the feed-forward layer; 0: where it is gated 8/3 · hidden, rounded up to a multiple of 64, "
    "else 4 · hidden",
    "≥ 0",
]
Vocab = Annotated[int, "tokens the model knows: at least the tokenizer's", "≥ 1", "in tokens"]
TieEmbeddings = Annotated[bool, "embedding and head are one matrix"]
MaxPositions = Annotated[
    int, "learned positions: how many there are; at least data.seq_len", "≥ 1", "in tokens"
]
GlobalEvery = Annotated[int, "with a window: blocks 0, N, 2 · N … have none; 0: every block has it", "≥ 0"]
# These numbers are used in float32: beyond its range they would become 0 or infinite.
RopeTheta = Annotated[float, "base of the rotary positions' frequencies", "> 0", "≥ 1.2e-38", "≤ 3.4e38"]
NormEps = Annotated[float, "added under the root of the norms", "> 0", "≥ 1.2e-38", "≤ 3.4e38"]
InitStd = Annotated[
    float,
    "standard deviation of the first weights; projections that add to the residual stream have a smaller one",
    "> 0",
    "≥ 1.2e-38",
    "≤ 3.4e38",
]

# Of pictures.
ImageSize = Annotated[int, "height and width of a picture, a multiple of patch_size", "≥ 1", "in pixels"]
PatchSize = Annotated[int, "height and width of a patch", "≥ 1", "in pixels"]
ClassToken = Annotated[bool, "whether a learnt token stands before the patches"]
Registers = Annotated[int, "learnt tokens behind the class token that no head reads", "≥ 0"]
PatchBias = Annotated[bool, "whether the linear layer on patches has a bias"]
EmbedNorm = Annotated[bool, "whether a LayerNorm stands before the blocks, as in CLIP"]
PixelMean = Annotated[
    list[float], "of each channel, of values from 0 to 1: subtracted from the pixels", "3 values"
]
PixelStd = Annotated[list[float], "of each channel: what they are divided by", "3 values", "> 0"]
