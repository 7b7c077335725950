import os

import pytest
import torch

from runners.models.layers import PackedLinear, can_pack
from tests.support.forked_python import run as run_forked

# absolute, for sums of up to 1,024 products near 1: x86 stays below 1e-4, Arm below 2e-4
CLOSE = 3e-4
SMALL = (96, 64)
LARGE = (512, 1024)
PACKS = """
import torch
from runners.models.layers import PackedLinear, can_pack
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.zeros(96, 64, dtype=dtype)
    if can_pack(weight):
        PackedLinear.of(weight, None)(weight)
"""


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 70)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_product_equals_the_plain_product(
    size: tuple[int, int], rows: tuple[int, ...], has_bias: bool
) -> None:
    weight = drawn(*size)
    bias = drawn(size[0]) if has_bias else None
    states = drawn(*rows, size[1])
    product = PackedLinear.of(weight, bias)(states)
    expected = states.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert product.shape == expected.shape
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=CLOSE)


def test_non_contiguous_states_give_the_same_product() -> None:
    layer = PackedLinear.of(drawn(*LARGE), None)
    states = drawn(4, 9, 3 * LARGE[1]).chunk(3, dim=-1)[1]
    torch.testing.assert_close(layer(states), layer(states.contiguous()))


def test_a_large_matrix_is_in_memory_once_and_a_small_one_twice() -> None:
    assert PackedLinear.of(drawn(*LARGE), None).plain is None
    assert PackedLinear.of(drawn(*SMALL), None).plain is not None


def test_nan_stays_in_its_row() -> None:
    states = drawn(3, LARGE[1])
    layer = PackedLinear.of(drawn(*LARGE), None)
    alone = states.clone()
    states[1] = torch.nan
    product = layer(states)
    assert product[1].isnan().all()
    torch.testing.assert_close(product[[0, 2]], layer(alone)[[0, 2]])


def test_bfloat16_gives_the_product_of_torch() -> None:
    weight = drawn(*LARGE).bfloat16()
    states = drawn(5, LARGE[1]).bfloat16()
    torch.testing.assert_close(
        PackedLinear.of(weight, None)(states), states @ weight.T, rtol=2e-2, atol=0.5
    )


def test_a_view_shares_memory_and_gives_the_same_product() -> None:
    weight = drawn(*LARGE)
    states = drawn(5, LARGE[1])
    view = PackedLinear.view(weight)
    assert view.matrix.data_ptr() == weight.data_ptr()
    torch.testing.assert_close(
        view(states), PackedLinear.of(weight, None)(states), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_and_bfloat16_on_a_cpu_are_packed(dtype: torch.dtype) -> None:
    assert can_pack(torch.empty(SMALL, dtype=dtype))
    assert not can_pack(torch.empty(SMALL, dtype=dtype, device="meta"))


def test_bfloat16_is_not_packed_on_a_processor_for_which_onednn_lacks_it() -> None:
    run = run_forked(["-c", PACKS], os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert run.returncode == 0, run.stderr


def test_float16_is_not_packed() -> None:
    assert not can_pack(drawn(*SMALL).half())
