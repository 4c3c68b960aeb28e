"""The decoder with a block of its own."""

from parallel_decoder.config import ParallelDecoderConfig
from torch import Tensor, nn

from trainer.models.decoder.block import Block
from trainer.models.decoder.decoder import Decoder
from trainer.models.layers.attention import LayerCache
from trainer.models.layers.shared import Shared


class ParallelBlock(Block):
    """x + scale · (attention(norm x) + mlp(norm x)), as in GPT-J and PaLM (Chowdhery et al. 2022,
    arXiv:2204.02311, section 2). [batch, seq, hidden] → the same.
    """

    def __init__(self, cfg: ParallelDecoderConfig) -> None:
        super().__init__(cfg)
        del self.mlp_norm
        self.scale = cfg.branch_scale

    def forward(self, x: Tensor, shared: Shared, past: LayerCache | None = None) -> Tensor:
        normed = self.attention_norm(x)
        return x + self.scale * (self.attention(normed, shared, past) + self.mlp(normed))


class ParallelDecoder(Decoder):
    """The decoder, with `ParallelBlock`s. Modules have the decoder's names, so its plan holds too."""

    def __init__(self, cfg: ParallelDecoderConfig) -> None:
        super().__init__(cfg)
        self.layers = nn.ModuleDict({str(layer): ParallelBlock(cfg) for layer in range(cfg.layers)})
