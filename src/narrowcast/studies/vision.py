"""What the vision studies share: trained networks, calibration batches, and post-training quantization of a copy."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from narrowcast.metrics import accuracy
from narrowcast.models import SmallCnn, SmallVit, cifar_resnet
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.studies.study import Setting
from narrowcast.workloads import Images, cifar10, fit, mnist


def digits(setting: Setting) -> tuple[Images, Images]:
    """Return MNIST's (training, test) digits, a few of them where the setting is quick."""
    train, test = mnist(setting.folder("mnist"))
    return (train.head(256), test.head(256)) if setting.quick else (train, test.head(5000))


def trained(kind: Callable[[], nn.Module], setting: Setting, train: Images, epochs: int, seed: int = 0) -> nn.Module:
    """Return a network of ``kind`` trained on ``train``; one epoch where the setting is quick."""
    torch.manual_seed(setting.seed + seed)
    model = kind()
    fit(model, train, epochs=1 if setting.quick else epochs, seed=setting.seed + seed)
    return model


def resnet20(setting: Setting) -> tuple[nn.Module, Images, Images]:
    """Return (the public ResNet20, calibration pictures, exact test pictures) of CIFAR-10."""
    folder = setting.folder("cifar10")
    train, test = cifar10(folder)
    few = 32 if setting.quick else 256
    return cifar_resnet(folder / "resnet20.safetensors"), train.head(few), test.head(32) if setting.quick else test


def runs(model: nn.Module, images: Images, size: int = 64) -> list[Callable[[], object]]:
    """Return one calibration run per batch."""
    return [lambda x=pixels: model(x) for pixels, _ in images.batches(size)]  # type: ignore[misc]


def quantized(model: nn.Module, recipe: PtqRecipe, calibration: Images) -> nn.Module:
    """Return a quantized copy of ``model``."""
    changed = copy.deepcopy(model)
    quantize_model(changed, recipe, runs(changed, calibration))
    return changed


def score(model: nn.Module, images: Images) -> float:
    """Return the accuracy in percent."""
    return accuracy(model, images.batches(250))


__all__ = ["SmallCnn", "SmallVit", "digits", "quantized", "resnet20", "runs", "score", "trained"]
