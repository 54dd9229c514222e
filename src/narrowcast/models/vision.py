"""Small image classifiers: the CIFAR ResNets of He et al. (2016, section 4.2), a plain CNN, a vision transformer."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from narrowcast.errors import InputError


class _Block(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)))


class CifarResNet(nn.Module):
    """A ResNet of 6n + 2 layers for 32x32 pictures, ``[N, 3, 32, 32] -> [N, 10]``; n = 3 is ResNet20."""

    def __init__(self, n: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, width = [], 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            blocks = [_Block(width if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(n)]
            stages.append(nn.Sequential(*blocks))
            width = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def cifar_resnet(path: Path, n: int = 3) -> CifarResNet:
    """Return a CIFAR ResNet with the weights in a safetensors file, in evaluation mode."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the safetensors weights of a CIFAR ResNet")
    model = CifarResNet(n)
    state = {name.removeprefix("module."): tensor for name, tensor in load_file(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit a ResNet{6 * n + 2}: {str(error).splitlines()[-1]}") from None
    return model.eval()


class SmallCnn(nn.Module):
    """Three convolutions with batch normalisation and a linear head, for 28x28 digits: 26,314 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = (1, 16, 32, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of digits ``[N, 1, 28, 28]``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class SmallVit(nn.Module):
    """A vision transformer over 7x7 patches of 28x28 digits: width 64, 4 heads."""

    def __init__(self, layers: int = 4, width: int = 64, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Linear(49, width)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of digits ``[N, 1, 28, 28]``."""
        x = F.unfold(x, 7, stride=7).mT
        x = self.patches(x) + self.places
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
