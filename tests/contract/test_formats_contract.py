"""What every format promises, whatever its family: one table, every member, the same facts.

Formats that the catalogue does not list but the types allow stand in the table too, so that a corner of the type is
not left to chance.
"""

import math

import pytest
import torch
from tests.references import round_one
from tests.witnesses import first_difference

from narrowcast.errors import InputError
from narrowcast.formats import (
    Bottom,
    Integer,
    Logarithmic,
    Minifloat,
    Posit,
    Specials,
    Tabulated,
    families,
    formats,
    rounding,
    roundings,
)  # fmt: skip
from narrowcast.formats import format as format_

DETERMINISTIC = [m for m in roundings() if not rounding(m).random]
MODES = [*DETERMINISTIC, "stochastic", "stochastic-3", "stochastic-equal", "stochastic-flush"]
MIRRORED = {"up": "down", "down": "up", "nearest-up": "nearest-down", "nearest-down": "nearest-up"}
HALVED_OTHERWISE = (Posit, Logarithmic)  # cells that are not halved in value: nearest is not nearest in value
UNLISTED = [
    Minifloat("open_e4m3fn", 4, 3, 7, Specials.FN, saturate=False),
    Minifloat("open_e4m3fnuz", 4, 3, 8, Specials.FNUZ, saturate=False),
    Minifloat("open_e2m3", 2, 3, 1, saturate=False),
    Minifloat("e4m3_no_subnormals", 4, 3, 7, bottom=Bottom.ZERO),
    Minifloat("ue3m2_all_normal", 3, 2, 3, Specials.FN, Bottom.NORMAL, signed=False),
    Minifloat("ue3m2_without_nan", 3, 2, 3, Specials.NONE, signed=False),
    Minifloat("e4m0_with_infinity", 4, 0, 7, saturate=False),
    Minifloat("bfloat16_saturating", 8, 7, 127),
    Minifloat("e5m2_at_the_bottom_of_float32", 5, 2, 127, saturate=False),
    Minifloat("unsigned_bfloat16", 8, 7, 127, signed=False),
    Minifloat("e7m0", 7, 0, 63, Specials.NONE),
    Integer("q0.7", 7, fraction=7),
]
SPELLED = [format_(example) for family in families() for example in family.examples]
TABLE = [*formats().values(), *SPELLED, *UNLISTED]
every_format = pytest.mark.parametrize("fmt", TABLE, ids=str)


def probe(fmt) -> torch.Tensor:
    """Ascending float32 inputs around everything that can go wrong, both signs, without NaN (at most ~4000)."""
    if fmt.bits <= 16:
        values = fmt.values()
        values = values[:: max(1, len(values) // 300)]
    else:
        values = torch.logspace(-45, 38, 300, dtype=torch.float64)
    x = torch.cat([values, (values[1:] + values[:-1]) / 2, fmt.max * torch.linspace(0.9, 2.1, 25).double()])
    x = torch.cat([x, fmt.smallest * torch.linspace(0.1, 3, 30).double(), fmt.smallest_normal * x.sign()]).float()
    x = torch.cat([x, torch.nextafter(x, x.new_tensor(torch.inf)), torch.nextafter(x, x.new_tensor(-torch.inf))])
    x = torch.cat([x, torch.tensor([0.0, 1e-45, 2.0**-126, torch.finfo(torch.float32).max, torch.inf])])
    x = x[~x.isnan()]
    return torch.cat([-x, x]).sort().values


def without_zero(fmt) -> bool:
    return isinstance(fmt, Tabulated) and bool((fmt.values() != 0).all())


def draws(x: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, 1 << 16, x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def modes_with_draws(x):
    for mode in MODES:
        yield mode, rounding(mode), draws(x) if rounding(mode).random else None


@every_format
def test_rounding_is_decoding_what_was_encoded_bit_for_bit(fmt):
    x = torch.cat([probe(fmt), torch.tensor([torch.nan])])
    for mode, function, random in modes_with_draws(x):
        codes = fmt.encode(x, function, random)
        assert codes.dtype == fmt.code_dtype
        if fmt.bits < 32:
            assert int(codes.min()) >= 0 and int(codes.max()) < 1 << fmt.bits
        rounded, decoded = fmt.round(x, function, random), fmt.decode(codes)
        assert rounded[-1].isnan()
        if not decoded[-1].isnan():  # no code for NaN: it becomes that of +0, or of what is nearest to it
            assert decoded[-1] == fmt.values().abs().min() and not decoded[-1].signbit()
        unsigned_without_nan = decoded.isnan() != rounded.isnan()
        assert not unsigned_without_nan[:-1].any()
        assert not first_difference(rounded[:-1], decoded[:-1], x[:-1]), mode


@every_format
def test_rounding_twice_changes_nothing(fmt):
    x = probe(fmt)
    for mode, function, random in modes_with_draws(x):
        once = fmt.round(x, function, random)
        other = 65535 - random if random is not None else None
        assert not first_difference(fmt.round(once, function, other), once, x), mode


@every_format
def test_rounding_keeps_order(fmt):
    x = probe(fmt)
    x = x if getattr(fmt, "signed", True) else x[x > 0]
    for mode in DETERMINISTIC:
        rounded = fmt.round(x, rounding(mode))
        finite = rounded[~rounded.isnan()]
        assert (finite[1:] >= finite[:-1]).all(), mode
    random = torch.full(x.shape, 12345, dtype=torch.int32)  # one draw for all: then stochastic rounding does too
    rounded = fmt.round(x, rounding("stochastic"), random)
    finite = rounded[~rounded.isnan()]
    assert (finite[1:] >= finite[:-1]).all()


@every_format
def test_saturation_or_the_way_out(fmt):
    beyond = torch.tensor([torch.inf, 2.0 * fmt.max if fmt.max < 1e38 else torch.inf])
    lowest = fmt.low * fmt.smallest if isinstance(fmt, Integer) else -fmt.max
    rounded = fmt.round(torch.cat([beyond, -beyond])).tolist()
    if isinstance(fmt, Tabulated):
        lowest, infinite, finite = float(fmt.values()[0]), fmt.max, fmt.max
        if fmt.beyond is not None:
            infinite = fmt.beyond.value
            finite = infinite if math.isfinite(fmt.beyond.rung) else fmt.max
            lowest = -fmt.max
        expected = [infinite, finite, *(-v if fmt.beyond else lowest for v in (infinite, finite))]
    elif isinstance(fmt, Integer) or fmt.saturate or fmt.specials is Specials.NONE:
        expected = [fmt.max, fmt.max, lowest, lowest]
        top = fmt.max if not (isinstance(fmt, Integer) and fmt.high == 0) else 0.0
        expected[:2] = [top, top]
    else:
        out = math.inf if fmt.inf_code is not None else math.nan
        expected = [out, out, -out, -out]
    if not getattr(fmt, "signed", True) and isinstance(fmt, Minifloat):
        expected[2:] = [math.nan if fmt.nan_code is not None else 0.0] * 2
    assert not first_difference(rounded, expected, [1, 1, -1, -1])


@every_format
def test_up_is_down_mirrored_and_the_rest_are_odd_functions(fmt):
    lopsided = isinstance(fmt, Tabulated) and not torch.equal(fmt.values(), -fmt.values().flip(0))
    if not fmt.signed or lopsided or (isinstance(fmt, Integer) and not fmt.symmetric) or without_zero(fmt):
        x = probe(fmt)
        assert (fmt.round(x[x >= 0]) >= 0).logical_or(fmt.round(x[x >= 0]).isnan()).all()
        return  # the range itself is lopsided: there is nothing to mirror
    x = probe(fmt)
    x = x[x != 0]
    for mode in DETERMINISTIC:
        mirror = MIRRORED.get(mode, mode)
        found, mirrored = fmt.round(x, rounding(mode)), -fmt.round(-x, rounding(mirror))
        signed_zero = bool(fmt.round(torch.tensor(-0.0)).signbit())
        positive = -0.0 if signed_zero else 0.0  # adding it makes every zero positive, or changes nothing
        assert not first_difference(found + positive, mirrored + positive, x), mode


@every_format
def test_directed_modes_bracket_and_nearest_is_nearest(fmt):
    x = probe(fmt).double()
    low = fmt.low * fmt.smallest if isinstance(fmt, Integer) else -fmt.max if fmt.signed else fmt.smallest
    high = fmt.high * fmt.smallest if isinstance(fmt, Integer) else fmt.max
    if isinstance(fmt, Tabulated):
        low, high = float(fmt.values()[0]), fmt.max
    if isinstance(fmt, Minifloat) and fmt.bottom is Bottom.NORMAL:
        x = x[x.abs() >= fmt.smallest]
    if without_zero(fmt):  # in the cell around it, toward zero may be across it
        x = x[(x >= fmt.smallest) | (x <= fmt.values()[fmt.values() < 0][-1])]
    x = x[(x >= low) & (x <= high)]
    down, up = (fmt.round(x, rounding(m)).double() for m in ("down", "up"))
    assert (down <= x).all() and (x <= up).all()
    for mode in MODES:
        rounded = fmt.round(x, rounding(mode), draws(x)).double()
        assert ((rounded == down) | (rounded == up)).all(), mode
    nearest = torch.minimum(x - down, up - x)
    for mode in (m for m in MODES if m.startswith("nearest") and not isinstance(fmt, HALVED_OTHERWISE)):
        assert torch.equal((fmt.round(x, rounding(mode)).double() - x).abs(), nearest), mode
    assert (fmt.round(x, rounding("toward-zero")).double().abs() <= x.abs()).all()


@every_format
def test_neighbours_are_the_values_on_either_side(fmt):
    if fmt.bits > 16:
        return  # too many values to list; up and down themselves are checked against gfloat
    values = fmt.values()
    x = probe(fmt).double()
    x = x[(x >= values[0]) & (x <= values[-1])]
    below, above = (side.double() for side in fmt.neighbours(x))
    held = ~below.isnan()  # zero and what lies below it have no place in e8m0
    at = torch.searchsorted(values, x)
    assert torch.equal((above + 0.0)[held], values[at][held])
    assert torch.equal((below + 0.0)[held], torch.where(values[at] == x, values[at], values[at - 1])[held])


@every_format
def test_the_layout_adds_up(fmt):
    facts, layout = fmt.facts(), fmt.layout
    assert facts["name"] == fmt.name and facts["family"] == layout.family and facts["max"] == fmt.max
    assert layout.sign == int(fmt.signed)
    if isinstance(fmt, Minifloat | Integer):
        assert layout.sign + (layout.exponent or 0) + (layout.mantissa or 0) == fmt.bits


@every_format
def test_scalar_reference(fmt):
    if fmt.bits > 16:
        assert fmt.name in ("float32", "tf32")  # their ladders have too many rungs; gfloat and ml_dtypes stand in
        return
    x = probe(fmt)[::7] if fmt.bits <= 8 else probe(fmt)[::97]
    for mode, function, random in modes_with_draws(x):
        drawn = random.tolist() if random is not None else [0] * len(x)
        if without_zero(fmt) and function.random:
            continue  # in the cell around zero, places are exact to 2**-52 only
        if fmt.bits > 14 and function.random:
            continue  # their fixed point is shorter than a draw: see the exact counts in test_rounding
        expected = [round_one(fmt, v, mode, d) for v, d in zip(x.tolist(), drawn, strict=True)]
        assert not first_difference(fmt.round(x, function, random), expected, x), mode


@every_format
def test_every_code_decodes_and_comes_back(fmt):
    if fmt.bits > 16:
        with pytest.raises(InputError, match="too many to list"):
            fmt.codes()
        return
    codes = fmt.codes()
    values = fmt.decode(codes)
    used = ~values.isnan() & (values.abs() <= max(fmt.max, -fmt.values()[0]))
    if isinstance(fmt, Minifloat) and fmt.bottom is Bottom.ZERO:
        magnitude = codes & ((1 << (fmt.exponent + fmt.mantissa)) - 1)
        used &= (magnitude == 0) | (magnitude >= 1 << fmt.mantissa)
    elif isinstance(fmt, Integer) and fmt.symmetric and fmt.signed:
        assert (~used).sum() == 1  # the most negative code
    elif isinstance(fmt, Tabulated):
        used[list(fmt.duplicates)] = False
    assert torch.equal(fmt.encode(values)[used], codes[used])
    for mode in DETERMINISTIC:
        assert torch.equal(fmt.encode(values[used], rounding(mode)), codes[used]), mode


@every_format
def test_values_are_exactly_what_rounding_can_give(fmt):
    if fmt.bits > 16:
        assert fmt.round(torch.tensor(fmt.max)) == fmt.max
        return
    values = fmt.values()
    assert values.dtype == torch.float64
    assert (values.diff() > 0).all()
    assert torch.equal(fmt.round(values).double(), values)
    assert values[-1] == fmt.max or (isinstance(fmt, Integer) and fmt.high == 0)
    assert values[values > 0].numel() == 0 or values[values > 0][0] == fmt.smallest
    rounded = fmt.round(probe(fmt)).double()
    assert torch.isin(rounded[rounded.isfinite()] + 0.0, values).all()
    assert fmt.max == 0 or 2.0**fmt.top_exponent <= fmt.max < 2.0 ** (fmt.top_exponent + 1)


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_dtypes_round_like_float32(fmt, dtype):
    x = probe(fmt).to(dtype)
    widened = x.float() if dtype != torch.float64 else probe(fmt)
    for mode, function, random in modes_with_draws(x):
        assert not first_difference(fmt.round(x, function, random), fmt.round(widened, function, random), x), mode
        assert torch.equal(fmt.encode(x, function, random), fmt.encode(widened, function, random)), mode


@every_format
def test_shapes_strides_and_the_input_left_alone(fmt):
    x = probe(fmt)[:240].clone()
    kept = x.clone()
    for _mode, function, random in modes_with_draws(x):
        flat = fmt.round(x, function, random)
        codes = fmt.encode(x, function, random)
        assert not first_difference(x, kept, x)
        grid = x.view(12, 20)
        grid_random = random.view(12, 20).T if random is not None else None
        assert not first_difference(fmt.round(grid.T, function, grid_random), flat.view(12, 20).T, grid.T)
        assert torch.equal(fmt.encode(grid.T, function, grid_random), codes.view(12, 20).T)
        every_third = random[::3] if random is not None else None
        assert not first_difference(fmt.round(x[::3], function, every_third), flat[::3], x[::3])
        last = random[-1] if random is not None else None
        assert fmt.round(x[-1], function, last).shape == fmt.encode(x[-1], function, last).shape == ()
        empty = torch.empty(3, 0)
        assert fmt.round(empty, function, empty.int()).shape == fmt.encode(empty, function, empty.int()).shape == (3, 0)
    expanded = x[:1].expand(5)
    assert (fmt.round(expanded) == flat.new_tensor(float(fmt.round(x[:1])))).logical_or(expanded.isnan()).all() or (
        fmt.round(expanded).isnan().all()
    )


COMPILED = [  # every way of rounding that a format can take; stochastic here on the left, codes on the right
    "e4m3fn", "ue4m3", "e5m2fnuz", "e3m0fn", "bfloat16", "e8m0", "int4", "float16", "q1.6", "e2m1fn",
    "posit8_1", "hif8", "nf4", "lns8_8",
]  # fmt: skip


def _all_of_them(x, random):
    """Nearest-even values of every format; codes of every second one, and stochastic values of the others."""
    dithered, results = rounding("stochastic"), []
    for place, fmt in enumerate(map(format_, COMPILED)):
        results += [fmt.round(x), fmt.encode(x) if place % 2 else fmt.round(x, dithered, random)]
    return results


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_compiled_code_gives_the_same_bits():
    """One graph for every kind of format. Subnormals too: the compiler must not flush them, nor drop a pair of casts."""
    x = torch.cat([probe(format_(name)) for name in COMPILED])
    x = torch.cat([x, x.new_tensor([torch.nan, 1e-45, -1e-40])])
    random = draws(x)
    torch.compiler.reset()
    found = torch.compile(_all_of_them, fullgraph=True)(x, random)
    for a, b in zip(found, _all_of_them(x, random), strict=True):
        assert a.dtype == b.dtype
        assert not first_difference(a, b, x)
