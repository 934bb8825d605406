"""Four networks in plain torch.nn, as their authors would write them: what `bpkit bench models` converts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, with in-place ReLUs and an in-place sum, as in torchvision."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for small images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = self.head(torch.flatten(self.pool(self.blocks(self.stem(images))), 1))
        return logits if labels is None else F.cross_entropy(logits, labels)


class UNet(nn.Module):
    """An encoder and decoder with transposed convolutions and concatenated skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(1, width), self._block(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.bottom = self._block(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(n * width, n * width // 2, 2, 2) for n in (4, 2))
        self.after2, self.after1 = self._block(4 * width, 2 * width), self._block(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)
        self.loss = nn.BCEWithLogitsLoss()

    @staticmethod
    def _block(channels: int, out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1),
            nn.GroupNorm(2, out),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(out, out, 3, padding=1),
            nn.InstanceNorm2d(out, affine=True),
            nn.SiLU(),
        )

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        first = self.down1(images)
        second = self.down2(self.pool(first))
        third = self.bottom(self.pool(second))
        second = self.after2(torch.cat([self.up2(third), second], dim=1))
        first = self.after1(torch.cat([self.up1(second), first], dim=1))
        return self.loss(self.head(first), masks)


class Tagger(nn.Module):
    """A bidirectional LSTM over packed sentences of several lengths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 7)
        self.loss = nn.CrossEntropyLoss(ignore_index=-1)

    def forward(self, words: Tensor, lengths: Tensor, tags: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        return self.loss(self.head(hidden).flatten(0, 1), tags.flatten())


class Translator(nn.Module):
    """torch's own Transformer, from tokens to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.transformer = nn.Transformer(width, 4, 2, 2, 4 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 100)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1] - 1, dtype=self.head.weight.dtype
        )
        hidden = self.transformer(
            self.embedding(source),
            self.embedding(target[:, :-1]),
            tgt_mask=mask.to(source.device),
            tgt_is_causal=True,
        )
        return self.loss(self.head(hidden).flatten(0, 1), target[:, 1:].flatten())
