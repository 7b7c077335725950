"""Linear layers of all precisions against plain products, and masks as biases."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from runners.models import layers
from runners.models.layers import (
    Int8Linear,
    Int8WeightLinear,
    PackedLinear,
    as_bias,
    can_pack,
    linear_layer,
    max_weight,
    quantize_rows,
)
from tests.support.forked_python import ROOT
from tests.support.forked_python import run as run_forked
from wire.host import process_environment

# absolute, for sums of up to 1,024 products near 1: x86 stays below 1e-4, Arm below 2e-4
CLOSE = 3e-4
EXACT = 1e-6  # relative, for two float32 factors in a different order
SMALL = (96, 64)
LARGE = (512, 1024)
INT8 = (40, 96)
Kind = type[PackedLinear | Int8Linear | Int8WeightLinear]
PACKS = """
import torch
from runners.models.layers import PackedLinear, can_pack
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.zeros(96, 64, dtype=dtype)
    if can_pack(weight):
        PackedLinear.of(weight, None)(weight)
"""
# Without limits, the numbers of rows keep 160 MB.
ROWS = """
import torch
from psutil import Process
from runners.models.layers import PackedLinear
from wire.host import return_freed_memory

layer = PackedLinear.of(torch.zeros(256, 256), None)
states = torch.zeros(1000, 256)
layer(states)
before = Process().memory_info().rss
for num_rows in range(700, 1000):
    layer(states[:num_rows])
return_freed_memory()
growth_mb = (Process().memory_info().rss - before) / 1e6
assert growth_mb < 100, growth_mb
"""


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.fixture(params=[Int8Linear, Int8WeightLinear])
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def states() -> Tensor:
    """Rows of very different magnitudes."""
    return drawn(5, INT8[1]) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]


@pytest.mark.parametrize("layer_of", [PackedLinear.of, PackedLinear.view], ids=["copy", "view"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 70)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_packed_product_equals_the_plain_one(
    layer_of: Callable[[Tensor, Tensor | None], PackedLinear],
    size: tuple[int, int],
    rows: tuple[int, ...],
    has_bias: bool,
) -> None:
    weight = drawn(*size)
    bias = drawn(size[0]) if has_bias else None
    states = drawn(*rows, size[1])
    expected = states.double() @ weight.double().T + (0 if bias is None else bias.double())
    product = layer_of(weight, bias)(states)
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=CLOSE)


def test_packed_layers_take_any_strides_and_bfloat16() -> None:
    layer = PackedLinear.of(drawn(*LARGE), None)
    states = drawn(4, 9, 3 * LARGE[1]).chunk(3, dim=-1)[1]
    torch.testing.assert_close(layer(states), layer(states.contiguous()))
    weight = drawn(*LARGE).bfloat16()
    rows = drawn(5, LARGE[1]).bfloat16()
    product = PackedLinear.of(weight, None)(rows)
    torch.testing.assert_close(product, rows @ weight.T, rtol=2e-2, atol=0.5)


def test_a_large_matrix_is_in_memory_once() -> None:
    assert PackedLinear.of(drawn(*LARGE), None).plain is None
    assert PackedLinear.of(drawn(*SMALL), None).plain is not None
    weight = drawn(*LARGE)
    assert PackedLinear.view(weight).matrix.data_ptr() == weight.data_ptr()


def test_float32_and_bfloat16_on_a_cpu_are_packed() -> None:
    for dtype, expected in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        assert can_pack(torch.empty(SMALL, dtype=dtype)) == expected
        assert not can_pack(torch.empty(SMALL, dtype=dtype, device="meta"))


def test_bfloat16_is_not_packed_where_onednn_lacks_it() -> None:
    run = run_forked(["-c", PACKS], os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert run.returncode == 0, run.stderr


def test_products_of_many_numbers_of_rows_take_little_memory() -> None:
    command = [sys.executable, "-c", ROWS]
    subprocess.run(command, cwd=ROOT, env=process_environment(os.environ), check=True)


def test_an_int8_product_is_that_of_rounded_numbers(states: Tensor) -> None:
    weight = drawn(*INT8)
    integers, scales = quantize_rows(weight, max_weight())
    least, most = states.double().aminmax(dim=-1, keepdim=True)
    row_scales = (most - least).clamp_min(1e-30) / 255
    rounded = ((states.double() - least) / row_scales + 0.5).floor()
    expected = (rounded * row_scales + least) @ integers.double().T * scales.double()
    # A state halfway between two integers may round either way in float32: one step of one weight.
    one_step = states.abs().amax(-1, keepdim=True) / 127 * weight.abs().max()
    difference = (Int8Linear.of(weight, None)(states) - expected).abs()
    assert (difference <= one_step + EXACT * expected.abs()).all()
    assert (difference <= 1e-3 * one_step + EXACT * expected.abs()).float().mean() > 0.95


def test_float32_states_meet_the_quantized_weights(states: Tensor) -> None:
    weight = drawn(*INT8)
    integers, scales = quantize_rows(weight, 127)
    product = Int8WeightLinear.of(weight, None)(states)
    expected = states.double() @ integers.double().T * scales.double()
    assert ((product - expected).abs() <= EXACT * 10 * states.abs().sum(-1, keepdim=True)).all()


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", Int8Linear), ("aarch64", Int8WeightLinear)]
)
def test_other_processors_quantize_weights_alone(
    monkeypatch: pytest.MonkeyPatch, states: Tensor, machine: str, expected: Kind
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(layers, "max_weight", lambda: 127)
    weight = drawn(*INT8)
    product = linear_layer(weight, None, "int8")(states)
    assert torch.equal(product, expected.of(weight, None)(states))


def test_int8_is_close_to_float32(states: Tensor, kind: Kind) -> None:
    weight = drawn(*INT8)
    bias = torch.arange(INT8[0]).float()
    product = kind.of(weight, bias)(states) - bias
    assert torch.cosine_similarity(product[:4], states[:4] @ weight.T).min() > 0.999
    assert (product[4] == 0).all()  # zeros times the matrix, plus the bias


def test_an_int8_row_is_the_same_in_every_batch(states: Tensor, kind: Kind) -> None:
    linear = kind.of(drawn(*INT8), drawn(INT8[0]))
    together = linear(states.repeat(2, 1, 1))
    assert together.shape == (2, 5, INT8[0])
    for index, row in enumerate(states):
        assert torch.equal(linear(row[None])[0], together[1, index])


@pytest.mark.parametrize("place", [slice(None), 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer_kind", [PackedLinear, Int8Linear, Int8WeightLinear])
def test_nan_stays_in_its_row(layer_kind: Kind, value: float, place: slice | int) -> None:
    linear = layer_kind.of(drawn(*INT8), None)
    states = drawn(5, INT8[1])
    poisoned = states.clone()
    poisoned[1, place] = value
    output = linear(poisoned)
    assert not output[1].isfinite().any()
    assert output[1].isnan().all() or layer_kind is not Int8Linear
    others = [0, 2, 3, 4]
    torch.testing.assert_close(output[others], linear(states)[others])


def test_every_row_uses_the_whole_integer_range() -> None:
    weight = torch.randn(9000, 8) * torch.logspace(-6, 3, 9000)[:, None]  # more rows than one block
    weight[17] = 0
    padded, scales = quantize_rows(weight, 127, 8)
    integers = padded[:, :8]
    assert not padded[:, 8:].any()
    largest = integers.abs().amax(-1)
    assert largest[17] == 0
    assert (largest[torch.arange(9000) != 17] == 127).all()
    assert ((integers * scales[:, None] - weight).abs() <= scales[:, None] * 0.501).all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_bias_has_rows_at_aligned_addresses(device: str) -> None:
    is_visible = (torch.arange(13) < torch.tensor([[3], [13]]))[:, None, None].to(device)
    bias = as_bias(is_visible, torch.float16)
    assert (bias.shape, bias.dtype) == ((2, 1, 1, 13), torch.float16)
    assert all(step % 8 == 0 for step in bias.stride()[:-1])
    assert as_bias(torch.tensor([[True, False]]), torch.float32).tolist() == [[0.0, -torch.inf]]
