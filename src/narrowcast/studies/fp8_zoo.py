"""What study 22 quantizes: eight trained models, each with data to calibrate on and a score; and the schemes."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.models import SmallCnn, SmallVit, cifar_resnet
from narrowcast.models.zoo import SmallMlp, SmallMobile, SmallUnet, fit_denoiser
from narrowcast.nn.convert import KEEP_WIDE
from narrowcast.ptq.operators import Elementwise, narrow_norms, norms
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe, Scheme, Smooth
from narrowcast.quantize import cast
from narrowcast.studies.quantized_language import Judge, judge
from narrowcast.studies.study import Setting
from narrowcast.studies.vision import digits, resnet20, trained
from narrowcast.workloads import Images

_NOISE = 0.5


@dataclass(frozen=True)
class Member:
    """A model of the zoo.

    Attributes:
        name: of it.
        model: trained, in evaluation mode; not to be changed.
        forwards: what runs a given copy on each calibration batch.
        score: judges a copy; larger is better.
        ends: its first and last layer, which the standard scheme leaves wide.
        language: whether SmoothQuant is part of the standard scheme.
    """

    name: str
    model: nn.Module
    forwards: Callable[[nn.Module], list[Callable[[], object]]]
    score: Callable[[nn.Module], float]
    ends: tuple[str, ...]
    language: bool = False


class _Inside(nn.Module):
    """A model whose sums and products of tensors are narrow too."""

    def __init__(self, model: nn.Module, mode: Elementwise) -> None:
        super().__init__()
        self.model, self.mode = model, mode
        self.config = getattr(model, "config", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.mode:
            return self.model(*args, **kwargs)


#: format -> (element of the weights, element of the inputs)
FORMATS = {
    "E5M2": ("e5m2", "e5m2"), "E4M3": ("e4m3fn", "e4m3fn"), "E3M4": ("e3m4fn", "e3m4fn"),
    "mixed": ("e3m4fn", "e4m3fn"), "INT8": ("int8", "int8"),
}  # fmt: skip


def quantized(
    member: Member, name: str, extended: bool = False, dynamic: bool = False, widened: tuple[str, ...] = ()
) -> nn.Module:
    """Return a quantized copy.

    Weights have a scale per output channel, inputs one per tensor: calibrated, or made anew where ``dynamic``. E5M2's
    inputs are cast as they are. Extended: norms, sums and products too, and the first and the last layer.
    """
    weights, inputs = FORMATS[name]
    direct = name == "E5M2"
    activation = cast(inputs) if direct else cast(f"{inputs}/tensor/fp32")
    static = not (direct or dynamic)
    kept = (*widened, *(() if extended else member.ends))
    scheme = Scheme(cast(f"{weights}/row/fp32"), activation, static=static)
    recipe = PtqRecipe(name, "", "", scheme, keep_wide=(*kept, *(KEEP_WIDE if member.language else ())))
    recipe = replace(recipe, balance=Smooth()) if member.language and not direct else recipe
    changed = copy.deepcopy(member.model)
    quantize_model(changed, recipe, member.forwards(changed))
    if not extended:
        return changed
    if norms(changed):
        narrow_norms(changed, activation, member.forwards(changed) if static else ())
    return _Inside(changed, Elementwise(activation)).eval()


def zoo(setting: Setting) -> list[Member]:
    """Return the eight; one of them, which needs no training, in a quick run."""
    resnet, images, exact = resnet20(setting)
    public = _pictures("ResNet20", resnet, images, exact, ("conv1", "linear"))
    if setting.quick:
        return [public]
    train, test = digits(setting)
    epochs, few = 6, train.head(256)
    kinds: list[tuple[str, Callable[[], nn.Module], tuple[str, ...]]] = [
        ("MLP", SmallMlp, ("up", "head")),
        ("CNN", SmallCnn, ("convs.0", "head")),
        ("MobileNet", SmallMobile, ("stem", "head")),
        ("ViT", SmallVit, ("patches", "head")),
    ]
    found = [_pictures(n, trained(kind, setting, train, epochs), few, test, ends) for n, kind, ends in kinds]
    found.append(_denoiser(setting, train, test))
    deeper = cifar_resnet(setting.folder("cifar10") / "resnet56.safetensors", 9)
    found.append(public)
    found.append(_pictures("ResNet56", deeper, images, exact, ("conv1", "linear")))
    return [*found, language_member(judge(setting))]


def _pictures(name: str, model: nn.Module, few: Images, test: Images, ends: tuple[str, ...]) -> Member:
    def forwards(m: nn.Module) -> list[Callable[[], object]]:
        return [lambda x=x: m(x) for x, _ in few.batches(64)]  # type: ignore[misc]

    @torch.no_grad()
    def score(m: nn.Module) -> float:
        right = [(m(x).argmax(-1) == y).sum() for x, y in test.batches(250)]
        return 100 * float(torch.stack(right).sum()) / len(test)

    return Member(name, model, forwards, score, ends)


def _denoiser(setting: Setting, train: Images, test: Images) -> Member:
    torch.manual_seed(setting.seed)
    model = SmallUnet()
    fit_denoiser(model, train.pixels, steps=400, noise=_NOISE, seed=setting.seed)
    g = torch.Generator().manual_seed(1)
    clean = test.head(1000).pixels
    noisy = clean + _NOISE * torch.randn(clean.shape, generator=g)
    few = train.pixels[:128] + _NOISE * torch.randn(train.pixels[:128].shape, generator=g)
    peak = float(clean.max() - clean.min())

    def forwards(m: nn.Module) -> list[Callable[[], object]]:
        return [lambda x=x: m(x) for x in few.split(64)]  # type: ignore[misc]

    @torch.no_grad()
    def score(m: nn.Module) -> float:
        error = torch.cat(
            [(m(x) - y).square().flatten(1) for x, y in zip(noisy.split(250), clean.split(250), strict=True)]
        )
        return 10 * math.log10(peak**2 / float(error.mean()))

    return Member("U-Net", model, forwards, score, ("inlet", "outlet"))


def language_member(j: Judge, model: nn.Module | None = None) -> Member:
    """Return the language model (or a changed copy of it) as a member; its score is the inverse of its perplexity."""

    def forwards(m: nn.Module) -> list[Callable[[], object]]:
        return [lambda b=b: m(input_ids=b, use_cache=False) for b in j.stories.calibration]  # type: ignore[misc]

    def score(m: nn.Module) -> float:
        return 1 / j.predict(m).perplexity

    return Member("language model", j.model if model is None else model, forwards, score, (), language=True)


def activations(member: Member, limit: int = 4096) -> list[Tensor]:
    """Return some of the inputs of the member's convolutions, ``[rows, width]`` each."""
    found: list[Tensor] = []
    handles = [
        m.register_forward_pre_hook(
            lambda _, args: found.append(args[0].detach().reshape(-1, args[0].shape[-1])[:limit])
        )
        for m in member.model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    member.forwards(member.model)[0]()
    for handle in handles:
        handle.remove()
    return found
