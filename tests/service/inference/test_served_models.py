from pathlib import Path

import pytest

from runners.artifacts.manifest import read_manifest
from runners.artifacts.precision import measured_agreement
from service.inference.listings import model_json
from service.inference.served_models import check_positions, load_served_model
from service.settings import Settings, SettingsError
from tests.support.catalog import CATALOG
from tests.support.fake_service import FLORENCE_ID, served_models

MANIFEST = served_models().get(FLORENCE_ID).manifest


@pytest.mark.parametrize("max_positions", [0, MANIFEST.num_image_tokens + 1])
def test_positions_for_more_than_an_image_are_accepted(max_positions: int) -> None:
    check_positions(MANIFEST, Settings(decoder_max_positions=max_positions))


def test_positions_for_an_image_only_prevent_the_start() -> None:
    with pytest.raises(
        SettingsError, match=f"an image alone takes {MANIFEST.num_image_tokens} positions of {FLORENCE_ID}"
    ):
        check_positions(MANIFEST, Settings(decoder_max_positions=MANIFEST.num_image_tokens))


def test_model_is_listed_with_the_agreement_of_the_precision_in_which_it_runs(artifacts: Path, model_id: str) -> None:
    entry = CATALOG[model_id]
    listed = model_json(load_served_model(entry, artifacts, Settings(device="cpu", encoder_precision="int8")))
    assert listed["precision"] == "encoder int8, decoder float32"
    assert listed["agreement"] == measured_agreement(read_manifest(artifacts), "int8", "float32")
    assert 0.9 < listed["agreement"]["equal_tokens"] <= 1
    assert model_json(load_served_model(entry, artifacts, Settings(device="cpu")))["agreement"] is None
