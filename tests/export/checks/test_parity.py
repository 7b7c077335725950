from dataclasses import replace

import pytest
import torch

from export.artifacts.vision_module import ImageInput
from export.checks.parity import (
    compare,
    compare_features,
    compare_tokens,
    leaving_out_broken,
    make_probes,
)
from export.checks.reference import GreedyAnswer
from export.errors import ParityError
from tests.support.catalog import CATALOG, FLORENCE
from wire.artifacts.manifest import Device, Precision

ROWS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
FEATURES = ROWS.view(2, 4, 8)
IMAGE_INPUT = ImageInput((96, 64), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("model_id", ["florence-2-mini", "paligemma-mini"])
def test_probes_differ_and_have_the_models_size(model_id: str) -> None:
    probes = make_probes(CATALOG[model_id], IMAGE_INPUT)
    assert {probe.image.size for probe in probes} == {(96, 64)}
    assert len({probe.image.tobytes() for probe in probes}) == len(probes) == 20
    texts = [probe.question.text for probe in probes]
    assert len(set(texts)) >= 8
    if model_id == "florence-2-mini":
        joined = " ".join(texts)
        for part in ("object", "caption", "region", "text", "<loc_"):
            assert part in joined
    assert len(make_probes(CATALOG["florence-2-base"], IMAGE_INPUT)) == 8


def reference_answer(token_ids: list[int], gap: float = 9.0) -> GreedyAnswer:
    """An answer whose tokens have logits `gap` above those of tokens 0 to 7."""
    others = dict.fromkeys(range(8), 0.0)
    return GreedyAnswer(tuple(token_ids), tuple(others | {token_id: gap} for token_id in token_ids))


def test_equal_features_pass() -> None:
    assert compare_features(FEATURES, FEATURES) == {
        "num_images": 2,
        "min_cosine": pytest.approx(1),
        "max_abs_error": 0,
        "max_abs_reference": float(FEATURES.abs().max()),
    }


def with_small_token(sign: float) -> torch.Tensor:
    features = FEATURES.clone()
    features[0, 0] *= sign * 1e-4
    return features


NOTHING = torch.full_like(FEATURES, torch.nan)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (FEATURES + 0.02, FEATURES),  # off by more than rounding
        (FEATURES * 1.01, FEATURES),  # right direction, wrong length
        (with_small_token(-1.0), with_small_token(1.0)),  # wrong direction
        (NOTHING, FEATURES),
        (NOTHING, NOTHING),
        (FEATURES[:, :2], FEATURES),
    ],
)
def test_different_features_fail(features: torch.Tensor, expected: torch.Tensor) -> None:
    with pytest.raises(ParityError, match="image features"):
        compare_features(features, expected)


@pytest.mark.parametrize(
    ("answer", "gap", "passes"),
    [
        ((1, 2, 3), 9.0, True),
        ((1, 7, 3), 0.0009, True),
        ((1, 7, 3), 0.0011, False),
        ((1, 9, 3), 0.0, False),  # not among the largest logits
        ((1, 2), 0.0, False),
        ((1, 2, 3, 4), 0.0, False),
    ],
)
def test_tokens_differ_at_near_ties_only(answer: tuple[int, ...], gap: float, passes: bool) -> None:
    expected = [reference_answer([1, 2, 3], gap), reference_answer([])]
    if passes:
        counts = compare_tokens([answer, ()], expected)
        num_near_ties = int(answer != (1, 2, 3))
        assert counts == {"num_prompts": 2, "num_tokens": 3, "num_near_ties": num_near_ties}
    else:
        with pytest.raises(ParityError, match=r"they differ from token \d on"):
            compare_tokens([answer, ()], expected)


def test_differences_are_measured_row_by_row() -> None:
    rows = ROWS.clone()
    rows[2] += 0.1
    measured = compare("a decoder", iter(rows), iter(ROWS))
    cosines = torch.cosine_similarity(rows, ROWS, dim=-1)
    assert measured == pytest.approx(
        {
            "mean_cosine": float(cosines.mean()),
            "min_cosine": float(cosines[2]),
            "max_abs_error": 0.1,
            "max_abs_float32": float(ROWS.abs().max()),
        },
        abs=1e-5,
    )
    assert measured == pytest.approx(compare("a decoder", [rows], [ROWS]), abs=1e-6)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        compare("a decoder", iter(ROWS[:3]), iter(ROWS))


@pytest.mark.parametrize(
    "rows", [-ROWS, ROWS.flip(-1), torch.full_like(ROWS, torch.nan)], ids=["-", "mixed up", "NaN"]
)
def test_unrelated_rows_fail(rows: torch.Tensor) -> None:
    with pytest.raises(ParityError, match="the int8 encoder differs from float32"):
        compare("the int8 encoder", rows, ROWS)


@pytest.mark.parametrize(
    ("defaults", "warning"),
    [
        ({}, "int8 is left out"),
        ({"cuda": "int8"}, "int8 is left out; the default on cuda is float32 instead"),
        (
            {"cpu": "int8", "cuda": "int8"},
            "int8 is left out; the default on cpu and cuda is float32 instead",
        ),
    ],
)
def test_a_broken_precision_is_left_out(
    defaults: dict[Device, Precision], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    precision = {}
    for device, parts in FLORENCE.precision.items():
        precision[device] = {**parts, "encoder": defaults.get(device, "float32")}
    with leaving_out_broken("encoder", replace(FLORENCE, precision=precision), "int8"):
        raise ParityError("the int8 encoder differs from float32")
    assert caplog.messages == [f"{FLORENCE.id}: the int8 encoder differs from float32; {warning}"]
