"""A post-training recipe: what each linear layer becomes at inference, and how its weights get there. Data only."""

from dataclasses import dataclass, field

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheSpec
from narrowcast.nn.convert import KEEP_WIDE
from narrowcast.ptq.adaround import Learned
from narrowcast.ptq.gptq import Solver
from narrowcast.ptq.search import AbsMax, Search
from narrowcast.quantize import Cast
from narrowcast.scaling import Divided, DividedTwoLevel
from narrowcast.transforms import Hadamard


@dataclass(frozen=True)
class Scheme:
    """The precision of a linear layer at inference.

    Attributes:
        weight: cast of the weight, along the contraction axis.
        activation: cast of the input, made anew for each input; or None to leave it wide.
        transform: rotation of the contraction axis of both, so that it cancels; or None. Weights are rotated once.
        static: the input's scale of the whole tensor comes from the calibration and stays: the only one, or the second
            level above those of the tiles.
    """

    weight: Cast
    activation: Cast | None = None
    transform: Hadamard | None = None
    static: bool = False

    def __post_init__(self) -> None:
        for cast in (self.weight, self.activation):
            if cast is not None and cast.transform is not None:
                raise InputError(f"scheme: cast {cast} has a transform of its own; give it as the scheme's transform")
        if self.transform is not None and self.transform.signs == "fresh":
            raise InputError("scheme: a rotation of stored weights cannot draw fresh signs; use none or fixed")
        cast = self.activation
        if self.static and (cast is None or not (cast.tile.is_tensor or isinstance(cast.scale, DividedTwoLevel))):
            raise InputError(
                "scheme: a static scale is one per tensor; expected an activation cast with tile 'tensor', or a second "
                "level that can be fixed (e4m3fn+divide-fp32)"
            )


@dataclass(frozen=True)
class CacheScheme:
    """The precision of cached keys and values. Casts run along the head dimension: one token of one head is a row.

    Attributes:
        key, value: their casts, or None to leave them wide; keys are cast behind their rotary embedding.
        static: each layer's keys, and its values, have one scale, which comes from the calibration and stays.
        ordered: the channels of each key head are put in an order in which like sizes share blocks (sheet 50), from the
            calibration.
    """

    key: Cast | None
    value: Cast | None = None
    static: bool = False
    ordered: bool = False

    def __post_init__(self) -> None:
        for cast in (self.key, self.value):
            if cast is not None and (cast.random or cast.scale.delayed is not None or cast.tile.rows > 1):
                raise InputError(f"cache: cast {cast} draws, has a history or shares scales between tokens; none may")
            fixable = cast is None or (cast.tile.is_tensor and isinstance(cast.scale, Divided))
            if self.static and not fixable:
                raise InputError(f"cache: a static scale is one per tensor that can be fixed (divide-fp32), not {cast}")
            if cast is not None and cast.tile.is_tensor and not self.static and cast.scale.needs_amax:
                raise InputError(f"cache: cast {cast} would need all tokens at once; make it static or scale by rows")
        if self.ordered and self.key is None:
            raise InputError("cache: an order of the keys' channels is for narrow keys")

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at keys and values."""
        return self.static or self.ordered

    def spec(self, module: str) -> CacheSpec:
        """Return what the cache of an attention module becomes."""
        return CacheSpec(module, self.key, self.value, self.static, self.ordered)

    def __str__(self) -> str:
        return self.spec("").words


@dataclass(frozen=True)
class Smooth:
    """SmoothQuant: give the weights a share ``alpha`` of the activations' difficulty."""

    alpha: float = 0.5


@dataclass(frozen=True)
class Awq:
    """AWQ: scale up the weights of channels that are often large, by the best of ``steps`` exponents.

    With ``duo`` factors that look at the weights' sizes too are tried beside those that do not (AutoAWQ).
    """

    steps: int = 20
    duo: bool = True


@dataclass(frozen=True)
class PtqRecipe:
    """How a trained model is quantized.

    Attributes:
        name: as in `ptq.recipe(name)`.
        summary: one line.
        paper: where it comes from.
        scheme: what a linear layer becomes.
        search: how a weight's scales are found.
        balance: factors moved between activations and weights before, or None.
        solver: what decides the roundings: GPTQ, learned rounding, or None for the nearest.
        kv: what is cached of keys and values, or None to leave them wide.
        keep_wide: glob patterns of modules that stay wide.
    """

    name: str
    summary: str
    paper: str
    scheme: Scheme
    search: Search = field(default_factory=AbsMax)
    balance: Smooth | Awq | None = None
    solver: Solver | Learned | None = None
    kv: CacheScheme | None = None
    keep_wide: tuple[str, ...] = KEEP_WIDE

    def to_json(self) -> dict[str, object]:
        """Return everything that decides what is computed, as plain values; casts by their spelling."""
        scheme = self.scheme
        casts = {"weight": scheme.weight, "activation": scheme.activation, "transform": scheme.transform, "kv": self.kv}
        how = {"search": self.search, "balance": self.balance, "solver": self.solver}
        return {
            "name": self.name,
            **{key: None if value is None else str(value) for key, value in casts.items()},
            **{key: None if value is None else repr(value) for key, value in how.items()},
            "static": scheme.static,
            "keep_wide": list(self.keep_wide),
        }

    @property
    def needs_calibration(self) -> bool:
        """Whether the recipe looks at activations at all."""
        cached = self.kv is not None and self.kv.needs_calibration
        return self.balance is not None or self.solver is not None or self.scheme.static or cached
