"""Our own product under block scales, as far as it can be held without a GPU: layouts, choice, compiling, package data."""

from dataclasses import asdict, fields
from importlib.util import find_spec

import pytest
import torch

from narrowcast.backend import choose
from narrowcast.errors import CheckFailed
from narrowcast.kernels import block_gemm, driver
from narrowcast.kernels.block_gemm import Tiling
from narrowcast.kernels.gemm import _plainly
from narrowcast.kernels.plan import Plan, ours
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.verify import products

E4 = ("fp8", "e4m3fn", "e4m3fn")
TILINGS = [Tiling(COLUMNS=columns, OUT=out) for columns in (0, 1) for out in (0, 1, 2)]


def test_source_comes_with_the_package_and_knows_every_option():
    text = driver.source("block_gemm")
    assert 'extern "C" __global__' in text
    assert all(text.count(field.name) > 1 for field in fields(Tiling))


@pytest.mark.parametrize("cut", TILINGS, ids=str)
def test_stages_fit_a_multiprocessor(cut):
    assert cut.shared <= 232448  # a block's limit on compute capability 9.0, CUDA programming guide, table of limits


@pytest.mark.parametrize("tile_b", ["1x128", "128x128"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 16), (5, 33, 200), (130, 256, 128), (64, 300, 777)])
def test_operands_lie_as_the_copy_engine_reads_them(monkeypatch, m, n, k, tile_b):
    generator = torch.Generator().manual_seed(m)
    steps = -(-k // 128)
    a, b = (torch.randint(0, 120, (rows, k), generator=generator, dtype=torch.uint8) for rows in (m, n))
    tall = 1 if tile_b == "1x128" else 128
    scale_a, scale_b = (torch.rand(rows, steps, generator=generator) for rows in (m, -(-n // tall)))
    want = _plainly(*_spread(a, b, scale_a, scale_b, tall), "e4m3fn", "e4m3fn", torch.float32)[:m, :n]

    def multiply(a, b, first, second, out, cut):
        for x in (a, b, first, second):
            assert x.stride(1) == 1
            assert x.data_ptr() % 16 == 0
            assert x.shape[0] == 1 or x.stride(0) * x.element_size() % 16 == 0
        assert b.shape[0] % 16 == 0
        second = second[:, : b.shape[0]].t() if cut.COLUMNS else second[:, :steps]
        spread = _spread(a, b, first[:, :m].t(), second, 1 if cut.COLUMNS else 128)
        return _plainly(*spread, "e4m3fn", "e4m3fn", out)[: a.shape[0], : b.shape[0]]

    monkeypatch.setattr(block_gemm, "multiply", multiply)
    found = block_gemm.product(a, b, scale_a, scale_b, tile_b, torch.float32)
    assert found.shape == (m, n)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-2)


def _spread(a, b, scale_a, scale_b, tall):
    """Return codes padded to whole tiles, and one scale per row and 128 of K of each."""
    deep, rows = scale_a.shape[1] * 128, -(-b.shape[0] // tall) * tall
    left = torch.nn.functional.pad(a, (0, deep - a.shape[1]))
    right = torch.nn.functional.pad(b, (0, deep - b.shape[1], 0, rows - b.shape[0]))
    second = scale_b.repeat_interleave(tall, 0)
    return left, right, scale_a, torch.nn.functional.pad(second, (0, 0, 0, rows - second.shape[0]))


@pytest.mark.parametrize(
    ("rows", "cols", "expected"),
    [
        (8192, 8192, True),
        (16384, 4096, True),
        (4096, 14336, True),
        (4096, 4096, False),
        (16384, 1024, False),
        (16, 16, False),
    ],
)
def test_size_decides(rows, cols, expected):
    assert block_gemm.faster(rows, cols, 132) is expected


def test_plan_says_what_multiplies():
    plan = Plan(*E4, "1x128", "128x128")
    tail = "e4m3fn x e4m3fn, 1x128 and 128x128 scales, split accumulation"
    assert str(plan) == f"scaled_mm {tail}"
    assert str(ours(plan, (9, 0))) == f"block_gemm (scaled_mm if small) {tail}"
    assert ours(plan, (10, 0)) == ours(plan, (8, 9)) == plan
    row = Plan(*E4, "row", "row")
    assert ours(row, (9, 0)) == row


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is for Linux only)")
def test_choice_on_hopper_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gemm = Gemm(cast("e4m3fn/1x128/fp32"), cast("e4m3fn/1x128/fp32"))
    made = {}
    for found in (True, False):
        monkeypatch.setattr(driver, "nvrtc", lambda found=found: None if found else _missing())
        made[found] = choose("native", gemm, torch.device("cuda"), "layer")
    assert made[True].plan == Plan(*E4, "1x128", "1x128", by="faster")
    assert made[False].plan == Plan(*E4, "1x128", "1x128")
    assert made[False].kernel.startswith("scaled_mm")


def _missing():
    raise CheckFailed("libnvrtc.so.13 was not found")


def test_machine_code_is_kept(monkeypatch, tmp_path):
    class Compiler:
        @staticmethod
        def nvrtcVersion(major, minor):
            return 0

    asked = []
    monkeypatch.setattr(driver, "nvrtc", Compiler)
    monkeypatch.setattr(driver, "_compile", lambda name, text, options: asked.append(options) or b"code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert driver.compiled("block_gemm", {"OUT": 1}) == b"code"
    assert len(asked) == 1
    driver.compiled("block_gemm", {"OUT": 2})
    assert len(asked) == 2
    assert [path.suffix for path in (tmp_path / "narrowcast").iterdir()] == [".cubin"] * 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    assert driver.compiled("block_gemm", {"OUT": 1}) == b"code"


@pytest.fixture
def compiler():
    try:
        return driver.nvrtc()
    except CheckFailed as error:
        pytest.skip(f"NVRTC: {error}")


@pytest.mark.parametrize("cut", TILINGS, ids=str)
def test_source_compiles(compiler, cut, tmp_path):
    assert driver.compiled("block_gemm", asdict(cut), tmp_path).startswith(b"\x7fELF")


def test_an_error_names_the_kernel(compiler, tmp_path):
    with pytest.raises(
        CheckFailed, match=r"kernel block_gemm \(.*-DWGS=3.*\): NVRTC does not compile it here: .*error"
    ):
        driver.compiled("block_gemm", {"WGS": 3}, tmp_path)


def test_verify_checks_both(monkeypatch):
    asked = []
    monkeypatch.setattr(products.backend, "gemm", lambda a, b, plan, out: asked.append(plan.by) or torch.zeros(8, 8))
    a, b = (cast("e4m3fn/1x128+pad/fp32").quantize(torch.zeros(8, 128)) for _ in "ab")
    monkeypatch.setattr(products, "_written", lambda *_: None)
    finding = products.Finding("recipe", {})
    plan = Plan(*E4, "1x128", "1x128", by="faster")
    products.check_products(finding, {"fwd": plan}, {"fwd.x": a, "fwd.w": b}, "zeros")
    assert asked == ["library"] * 3 + ["ours"] * 3
