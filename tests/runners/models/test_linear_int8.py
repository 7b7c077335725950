import pytest
import torch

from runners.models import layers
from runners.models.layers import (
    Int8Linear,
    Int8WeightLinear,
    linear_layer,
    max_weight,
    quantize_rows,
)

OUT = 40
IN = 96
ROWS = 5
Kind = type[Int8Linear | Int8WeightLinear]
EXACT = 1e-6  # relative, for two float32 factors in a different order


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[Int8Linear, Int8WeightLinear])
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def states() -> torch.Tensor:
    rows = torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1))
    return rows * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]  # very different magnitudes


def reference_product(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The product of plainly rounded integers, in float64."""
    integers, scales = quantize_rows(weight, max_weight())
    least, most = states.double().aminmax(dim=-1, keepdim=True)
    row_scales = (most - least).clamp_min(1e-30) / 255
    rounded = ((states.double() - least) / row_scales + 0.5).floor()
    quantized = rounded * row_scales + least
    return quantized @ integers.double().T * scales.double()


def test_the_product_equals_that_of_the_quantized_numbers(
    weight: torch.Tensor, states: torch.Tensor
) -> None:
    product = Int8Linear.of(weight, None)(states)
    expected = reference_product(weight, states)
    # A state halfway between two integers may round either way in float32: one step of one weight.
    one_step = states.abs().amax(-1, keepdim=True) / 127 * weight.abs().max()
    difference = (product - expected).abs()
    assert (difference <= one_step + EXACT * expected.abs()).all()
    assert (difference <= 1e-3 * one_step + EXACT * expected.abs()).float().mean() > 0.95


def test_float32_states_meet_the_quantized_weights(
    weight: torch.Tensor, states: torch.Tensor
) -> None:
    integers, scales = quantize_rows(weight, 127)
    product = Int8WeightLinear.of(weight, None)(states)
    expected = states.double() @ integers.double().T * scales.double()
    assert ((product - expected).abs() <= EXACT * 10 * states.abs().sum(-1, keepdim=True)).all()


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", Int8Linear), ("aarch64", Int8WeightLinear)]
)
def test_processors_other_than_x86_64_quantize_weights_alone(
    weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch, machine: str, expected: Kind
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(layers, "max_weight", lambda: 127)
    assert isinstance(linear_layer(weight, None, "int8"), expected)


def test_it_is_close_to_float32(weight: torch.Tensor, states: torch.Tensor, kind: Kind) -> None:
    bias = torch.arange(OUT).float()
    product = kind.of(weight, bias)(states) - bias
    assert torch.cosine_similarity(product[:4], states[:4] @ weight.T).min() > 0.999
    assert (product[4] == 0).all()  # zeros times the matrix, plus the bias


def test_a_row_gives_the_same_bits_in_every_batch(
    weight: torch.Tensor, states: torch.Tensor, kind: Kind
) -> None:
    linear = kind.of(weight, torch.randn(OUT))
    together = linear(states)
    for index, row in enumerate(states):
        assert torch.equal(linear(row[None])[0], together[index])


@pytest.mark.parametrize("where", [slice(None), 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_row(
    weight: torch.Tensor, states: torch.Tensor, kind: Kind, value: float, where: slice | int
) -> None:
    linear = kind.of(weight, None)
    poisoned = states.clone()
    poisoned[1, where] = value
    output = linear(poisoned)
    clean = linear(states)
    assert not output[1].isfinite().any()
    assert output[1].isnan().all() or kind is Int8WeightLinear
    others = [0, 2, 3, 4]
    assert torch.equal(output[others], clean[others])


def test_leading_dimensions_are_preserved(weight: torch.Tensor, kind: Kind) -> None:
    linear = kind.of(weight, None)
    states = torch.randn(2, 3, IN)
    assert linear(states).shape == (2, 3, OUT)
    assert torch.equal(linear(states)[1, 2], linear(states[1, 2][None])[0])


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
