"""Small real image sets from files: CIFAR-10 and MNIST digits, as float tensors ready for a network."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from narrowcast.errors import InputError

_CIFAR_MEAN, _CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as its public ResNets expect
_MNIST_MEAN, _MNIST_STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Images:
    """Pictures and their classes: float32 ``[count, channels, height, width]``, int64 ``[count]``."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return (pixels, labels) in batches of ``size``, shuffled by ``generator`` where one is given."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        return [(self.pixels[part], self.labels[part]) for part in order.split(size)]

    def head(self, count: int) -> "Images":
        """Return the first ``count``."""
        return Images(self.pixels[:count], self.labels[:count])


def labelled(path: Path) -> Images:
    """Return the pictures of an ``.npz`` (uint8 or float ``[N, C, H, W]``, integer labels ``[N]``), as float32.

    uint8 is divided by 255 and normalised as `cifar10` does; floats are taken as they are.
    """
    pixels, labels = _archive(path)
    if pixels.dim() != 4 or len(pixels) != len(labels):
        raise InputError(f"{path}: found pictures {list(pixels.shape)} and {len(labels)} labels, expected [N, C, H, W]")
    if pixels.is_floating_point():
        return Images(pixels.float(), labels)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_CIFAR_MEAN, _CIFAR_STD))
    return Images((pixels.float() / 255 - mean) / std, labels)


def cifar10(folder: Path) -> tuple[Images, Images]:
    """Return (train, test) from ``cifar10_train_raw_b1-4.npz`` and ``cifar10_test_raw_0_500.npz`` in ``folder``.

    Pixels are normalised as the public CIFAR ResNets of He et al.'s layout expect.
    """
    train, test = (labelled(folder / n) for n in ("cifar10_train_raw_b1-4.npz", "cifar10_test_raw_0_500.npz"))
    return train, test


def mnist(folder: Path) -> tuple[Images, Images]:
    """Return (7,997 training digits, 10,000 test digits) from the files in ``folder``, normalised."""
    pixels, labels = _archive(folder / "mnist_train_8k.npz")
    train = Images(_digits(pixels), labels)
    raw = _idx(folder / "t10k-images-idx3-ubyte.gz", 16)
    test = Images(_digits(raw.view(-1, 28, 28)), _idx(folder / "t10k-labels-idx1-ubyte.gz", 8).long())
    return train, test


def _digits(pixels: Tensor) -> Tensor:
    return ((pixels.float() / 255 - _MNIST_MEAN) / _MNIST_STD).view(-1, 1, 28, 28)


def _archive(path: Path) -> tuple[Tensor, Tensor]:
    """Return (pixels, labels) of an ``npz`` whose arrays are the larger pictures and the integer labels."""
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = sorted((opened[name] for name in opened.files), key=lambda a: a.size)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an npz of pictures ({error})") from None
    labels, pixels = next((a for a in arrays if a.ndim == 1), None), arrays[-1] if arrays else None
    if labels is None or pixels is None:
        raise InputError(f"{path}: holds no one-dimensional array of labels; expected pictures and labels")
    return torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64))[: len(pixels)]


def _idx(path: Path, header: int) -> Tensor:
    try:
        with gzip.open(path) as opened:
            raw = opened.read()[header:]
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a gzipped IDX file ({error})") from None
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
