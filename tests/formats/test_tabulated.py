"""Every 16-bit input through every format that is known by its values, and what the look-up itself promises."""

import numpy as np
import pytest
import torch
from tests.references import goes_up, leaves_range
from tests.tapered_references import round_many
from tests.witnesses import every_half, first_difference, random_float32

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.formats import Codebook, Posit, Tabulated, families, formats, rounding
from narrowcast.formats.ladder import keys
from narrowcast.formats.lookup import lookup

LISTED = [f for f in formats().values() if isinstance(f, Tabulated)]
SPELLED = [nc.format(example) for family in families() for example in family.examples]
TABLE = [*LISTED, *(f for f in SPELLED if isinstance(f, Tabulated))]
MODES = ["nearest-even", "nearest-away", "toward-zero", "up", "odd"]
every_format = pytest.mark.parametrize("fmt", TABLE, ids=str)


@every_format
def test_every_bfloat16_and_every_float16_input(fmt):
    for name, x in every_half().items():
        for mode in MODES:
            expected = round_many(fmt, x.double().numpy(), mode, goes_up, leaves_range) + 0.0
            found = fmt.round(x.to(getattr(torch, name)), rounding(mode)) + 0.0
            assert not first_difference(found, expected, x), (name, mode)


@every_format
def test_float64_is_rounded_once(fmt):
    """On both sides of every cut by one float64, where float32 would have to round first."""
    if fmt.bits > 8:
        return  # the same tables, only longer
    ladder = fmt.ladder()
    cuts = np.concatenate([ladder.values, ladder.middles])
    x = np.concatenate([cuts, np.nextafter(cuts, np.inf), np.nextafter(cuts, -np.inf)])
    for mode in MODES:
        expected = round_many(fmt, x, mode, goes_up, leaves_range) + 0.0
        assert not first_difference(fmt.round(torch.from_numpy(x), rounding(mode)) + 0.0, expected, x), mode


@pytest.mark.parametrize("name", ["hif8", "posit8_0", "posit16_1", "lns8_8", "nf4", "dynamic8"])
def test_random_float32_patterns(name):
    x = random_float32(100_000)
    for mode in MODES:
        expected = round_many(nc.format(name), x.double().numpy(), mode, goes_up, leaves_range) + 0.0
        assert not first_difference(nc.format(name).round(x, rounding(mode)) + 0.0, expected, x), mode


def test_keys_ascend_as_floats_do_and_tell_zeros_apart():
    tiny, next_to_one = float(np.float32(1e-45)), float(np.nextafter(np.float32(1), np.float32(2)))
    x = np.array([-np.inf, -1.5, -tiny, -0.0, 0.0, tiny, 1.0, next_to_one, np.inf])
    for wide in (False, True):
        assert (np.diff(keys(x, wide)) > 0).all()
    between = np.nextafter(1.0, 2.0)  # no float32: its key is that of the next one
    assert keys(np.array([between]), False) == keys(np.array([next_to_one]), False)


def test_formats_of_8_bits_need_one_comparison():
    for fmt in LISTED:
        table = lookup(fmt, rounding("nearest-even"), torch.float32, torch.device("cpu"))
        assert table.doublings <= (1 if fmt.bits <= 8 else 6), fmt


def test_tables_are_made_once_and_equality_knows_nothing_of_them():
    one, other = Posit("posit9_1", 9, 1), Posit("posit9_1", 9, 1)
    x = torch.linspace(-3, 3, 99)
    one.round(x)
    made = dict(one.tables)
    one.round(x)
    assert dict(one.tables) == made
    assert one == other and hash(one) == hash(other) and not other.tables
    assert nc.format("posit9_1") is nc.format("posit9_1")


def test_stochastic_rounding_is_linear_in_value_where_the_middle_is_not():
    """Between 1024 and 4096 a posit8_1 is halved at 2048, but its mean is kept."""
    draws = torch.arange(1 << 16, dtype=torch.int32)
    x = torch.tensor([[1024.0 + 768], [2048.0], [-3328.0], [2.0**-14]]).expand(-1, 1 << 16)
    rounded = nc.format("posit8_1").round(x, rounding("stochastic"), draws.expand(x.shape))
    assert rounded.double().mean(-1)[[0, 2, 3]].tolist() == [1792.0, -3328.0, 2.0**-14]
    assert set(rounded[1].tolist()) == {1024.0, 4096.0}


def _rounded(x, fmt):
    return fmt.round(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_compiled_code_follows_the_format_that_it_is_given():
    """Tables are constants of compiled code: another format, even of the same name, must not get the first one's."""
    torch.compiler.reset()
    compiled = torch.compile(_rounded, fullgraph=True)
    x = torch.linspace(-1, 1, 33)
    for table in ((-1.0, 0.0, 1.0), (-1.0, -0.5, 0.0, 1.0)):
        fmt = Codebook("mine", table)
        assert torch.equal(compiled(x, fmt), fmt.round(x))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match="cannot round a tensor of dtype"):
        nc.format("nf4").round(torch.zeros(3).to(dtype))


def test_tables_made_in_inference_mode_serve_training():
    fmt = Codebook("fresh", (-1.0, 0.0, 2.0))
    with torch.inference_mode():
        fmt.round(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    (x * fmt.round(x.detach())).sum().backward()
    assert x.grad is not None
