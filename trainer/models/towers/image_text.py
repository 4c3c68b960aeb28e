"""A tower for pictures beside one for texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.models.towers.text_tower import TextTower
from trainer.models.vision.vision import Vision


class ImageText(nn.Module):
    """Both towers, or a consecutive part of each.

    Between two pipeline stages, their hidden states travel side by side in one tensor: for each row the
    text's, flat, and then the picture's.
    """

    def __init__(self, cfg: ImageTextConfig) -> None:
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.text = TextTower(cfg.text, vocab=cfg.vocab, embedding=cfg.embedding, learnt=cfg.learnt)
        self.image = Vision(cfg.vision())

    def forward(self, x: Tensor, *, patches: Tensor, documents: Tensor, weights: Tensor) -> Tensor:
        """Return [rows, 2 · embedding + learnt], float32, with heads: first the text's embedding. Without
        them hidden states of both towers, [rows, elements].

        x: token ids [rows, seq] on the first stage, else hidden states of both towers.
        patches: [rows, positions, values], the picture; see `trainer.models.pictures.Pictures.patch`.
        documents: [rows, seq], padding has a number of its own.
        weights: [rows, 1, seq], of each token in the text's embedding.
        """
        text, image = x, patches
        if self.text.embed is None:
            text, image = self._parted(x, seq=documents.shape[1], positions=patches.shape[1])
        text, image = self.text(text, documents, weights), self.image(image)
        if self.text.head is None:
            return torch.cat((text.flatten(1), image.flatten(1)), dim=1)
        width = self.cfg.embedding
        return torch.cat((text[:, :width], image, text[:, width:]), dim=1)

    def _parted(self, x: Tensor, *, seq: int, positions: int) -> tuple[Tensor, Tensor]:
        """The hidden states of both towers, each [rows, positions, hidden]: of all positions, or of this
        rank's part of both under tensor parallelism.
        """
        text, image = seq * self.cfg.text.hidden, positions * self.cfg.image.hidden
        first = x.shape[1] * text // (text + image)
        return (
            x[:, :first].unflatten(1, (-1, self.cfg.text.hidden)),
            x[:, first:].unflatten(1, (-1, self.cfg.image.hidden)),
        )
