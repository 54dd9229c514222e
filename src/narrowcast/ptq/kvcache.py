"""Keys and values in any cast, as a cache would hold them, and channels of keys put in a better order beforehand.

A score is a sum over the channels of a head, so query and key may be put in any one order. Channels of like size side
by side share blocks with their like: an outlier then spoils the step of other outliers alone. The order is found once,
from the norms of the weight's rows (or from calibration), and costs nothing at run time where the rows of the weights
(and the frequencies of the rotary embedding with them) are stored in it; here, in emulation, it is applied to what the
rotary embedding returns, which is the same.

Casts run along the head dimension: one token of one head is a row.
Source: Trukhanov & Soloveychik 2024, "Accurate Block Quantization in LLMs with Outliers" (sheet 50).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io.cached import CacheLayer
from narrowcast.models.attention import repeated, set_layer_attention
from narrowcast.quantize import Cast

_CASTS = "narrowcast_cache_casts"  # attribute of modules: their name, and what is stored


@dataclass(frozen=True)
class CacheCasts:
    """What is stored of keys and values.

    Attributes:
        key, value: their casts, along the head dimension; None leaves them wide.
        order: by the name of an attention module, the order of the channels of each of its key heads, int64
            ``[G, D]``; layers without one keep theirs.
        own: by the name of an attention module, casts of its own for keys and for values, in place of those above.
    """

    key: Cast | None = None
    value: Cast | None = None
    order: dict[str, Tensor] = field(default_factory=dict)
    own: Mapping[str, tuple[Cast | None, Cast | None]] = field(default_factory=dict)


def head_order(weight: Tensor, heads: int, bias: Tensor | None = None, pairs: bool = False) -> Tensor:
    """Return the order of the channels of each key head by falling norm of their rows, int64 ``[heads, D]``.

    Args:
        weight: of the key projection, ``[heads * D, K]``.
        heads: key heads.
        bias: of it, or None; it counts as one more input.
        pairs: keep the two channels that a rotary embedding turns together (j and j + D/2) half a head apart, so that
            the embedding works as it is, with its frequencies in the same order.
    """
    if weight.dim() != 2 or weight.shape[0] % heads or (pairs and (weight.shape[0] // heads) % 2):
        raise InputError(f"key weight {list(weight.shape)} does not divide into {heads} heads" + " of pairs" * pairs)
    squares = weight.detach().double().square().sum(1)
    squares = squares + (0.0 if bias is None else bias.detach().double().square())
    size = squares.view(heads, -1)
    if not pairs:
        return size.argsort(dim=1, descending=True, stable=True)
    half = size.shape[1] // 2
    first = (size[:, :half] + size[:, half:]).argsort(dim=1, descending=True, stable=True)
    return torch.cat([first, first + half], 1)


def permuted_rows(weight: Tensor, order: Tensor, shared: int = 1) -> Tensor:
    """Return ``weight`` ``[heads * shared * D, ...]`` with the rows of each head in its ``order`` ``[heads, D]``.

    With ``shared`` query heads to a key head this is the query weight, with 1 the key weight or either bias.
    """
    heads, width = order.shape
    rows = weight.view(heads, shared, width, *weight.shape[1:])
    index = order.view(heads, 1, width, *([1] * (weight.dim() - 1))).expand_as(rows)
    return rows.gather(2, index).view_as(weight)


def key_orders(model: nn.Module, pairs: bool = False) -> dict[str, Tensor]:
    """Return `head_order` of every attention module of ``model`` (those with a ``k_proj``), by name."""
    config = getattr(model, "config", None)
    found = {}
    for name, module in model.named_modules():
        projection = getattr(module, "k_proj", None)
        if isinstance(projection, nn.Linear):
            width = int(getattr(module, "head_dim", 0) or config.hidden_size // config.num_attention_heads)  # type: ignore[union-attr]
            found[name] = head_order(projection.weight, projection.out_features // width, projection.bias, pairs)
    if not found:
        raise InputError(f"{type(model).__name__} has no attention with a k_proj; give the order yourself")
    return found


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of ``model`` that attend, by name: the innermost whose class is called so."""
    named = {n: m for n, m in model.named_modules() if type(m).__name__.endswith("Attention")}
    return {n: m for n, m in named.items() if not any(other.startswith(f"{n}.") for other in named)}


def narrow_cache(
    model: nn.Module, casts: CacheCasts, watch: Callable[[str, Tensor, Tensor], None] | None = None
) -> None:
    """Let the attention of ``model`` see keys and values as a cache under ``casts`` would give them back, in place.

    Every key and value is stored, those of the newest token too. ``watch`` is shown each module's name, keys and values
    ``[B, G, S, D]`` before. Raises InputError for an order of another shape, for an unknown module, and for a model
    whose attention cannot be set.
    """
    modules = dict(model.named_modules())
    if unknown := (casts.order.keys() | casts.own.keys()) - modules.keys():
        raise InputError(f"cache: the model has no module {sorted(unknown)[0]!r}")
    for name, module in modules.items():
        module.__dict__[_CASTS] = name, casts  # with the module, so that a copy of the model has it too

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        if _CASTS in module.__dict__:  # else another model that shares this one's config, and with it the setting
            name, own = module.__dict__[_CASTS]
            if watch is not None:
                watch(name, key, value)
            query, key, value = _stored(own, name, query, key, value)
        return F.scaled_dot_product_attention(query, *repeated(query, key, value), attn_mask=mask, scale=scale)

    set_layer_attention(model, attend)


def narrow_as(model: nn.Module, cache: Sequence[CacheLayer]) -> None:
    """Let the attention of ``model`` see keys and values as the caches of its modules give them back, in place."""
    order = {one.spec.module: one.order for one in cache if one.order is not None}
    narrow_cache(model, CacheCasts(order=order, own={o.spec.module: (o.spec.key, o.spec.value) for o in cache}))


def _stored(casts: CacheCasts, name: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query in the order of its keys, and keys and values as the cache gives them back."""
    order = casts.order.get(name)
    if order is not None:
        query, key = _ordered(query, order), _ordered(key, order)
    of_keys, of_values = casts.own.get(name, (casts.key, casts.value))
    key = key if of_keys is None else of_keys.apply(key, what="keys").to(key.dtype)
    value = value if of_values is None else of_values.apply(value, what="values").to(value.dtype)
    return query, key, value


def _ordered(x: Tensor, order: Tensor) -> Tensor:
    """Return ``x`` ``[B, H, S, D]`` with the channels of each head in the order of its key head."""
    if x.shape[-1] != order.shape[1] or x.shape[1] % len(order):
        raise InputError(f"cache: order {list(order.shape)} does not fit {x.shape[1]} heads of {x.shape[-1]} channels")
    index = order.repeat_interleave(x.shape[1] // len(order), 0).to(x.device)
    return x.gather(-1, index[None, :, None].expand_as(x))
