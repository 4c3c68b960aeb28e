"""A convolutional image encoder. Channels are the last dim everywhere but inside convolutions."""

import torch
from convnext.config import EXPANSION, KERNEL, STEM, ConvNeXtConfig
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


class Stem(nn.Module):
    """Pictures [pictures, height, width, 3] → [pictures, height / 4, width / 4, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, STEM, stride=STEM)
        self.norm = nn.LayerNorm(channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolved(self.conv, x))


class Block(nn.Module):
    """A depthwise convolution, then two layers on each position, added to the input. The first block of a
    stage halves height and width before that.
    """

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.shrink_norm = nn.LayerNorm(before, EPS) if before != channels else None
        self.shrink = nn.Conv2d(before, channels, 2, stride=2) if before != channels else None
        self.conv = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, EPS)
        self.w1 = nn.Linear(channels, EXPANSION * channels)
        self.w2 = nn.Linear(EXPANSION * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.shrink is not None and self.shrink_norm is not None:
            x = convolved(self.shrink, self.shrink_norm(x))
        return x + self.scale * self.w2(F.gelu(self.w1(self.norm(convolved(self.conv, x)))))


class Head(nn.Module):
    """The mean over all positions → logits [pictures, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, EPS)
        self.project = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x.mean(dim=(1, 2)))).float()


def convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNeXt(nn.Module):
    """Stem, blocks, head; or any consecutive part of them: a pipeline stage has `embed` or `head` set to None
    and keys of `layers` deleted.

    Stages of a pipeline exchange one shape, and these hidden states shrink: so they travel flat, with zeros
    behind.
    """

    def __init__(self, cfg: ConvNeXtConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed: Stem | None = Stem(cfg.widths[0])
        self.layers = nn.ModuleDict(
            {
                str(block): Block(cfg.shape_after(block - 1)[2], cfg.shape_after(block)[2])
                for block in range(cfg.blocks)
            }
        )
        self.head: Head | None = Head(cfg.widths[-1], cfg.classes)

    def forward(self, x: Tensor, **of_the_loss: Tensor) -> Tensor:
        """Return logits [rows, classes] with a `head`, else hidden states [rows, 1, elements].

        x: pictures [rows, 1, height, width, 3] with an `embed`, else hidden states.
        of_the_loss: tensors that only the objective reads, such as `label`.
        """
        x = x[:, 0]
        numbers = [int(key) for key in self.layers]
        if self.embed is not None:
            x = self.embed(x)
        else:
            before = min(numbers) - 1
            x = x[:, : self.cfg.elements_after(before)].unflatten(1, self.cfg.shape_after(before))
        for block in self.layers.values():
            x = block(x)
        if self.head is not None:
            return self.head(x)
        x = x.flatten(1)
        return F.pad(x, (0, self.cfg.most_elements - x.shape[1]))[:, None]
