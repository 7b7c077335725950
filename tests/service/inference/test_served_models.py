import pytest

from service.inference.served_models import check_positions
from service.settings import Settings, SettingsError
from tests.support.fake_service import FLORENCE_ID, served_models

MANIFEST = served_models().get(FLORENCE_ID).manifest


@pytest.mark.parametrize("max_positions", [0, MANIFEST.num_image_tokens + 1])
def test_positions_that_hold_more_than_an_image_are_enough(max_positions: int) -> None:
    check_positions(MANIFEST, Settings(decoder_max_positions=max_positions))


def test_positions_that_an_image_fills_stop_the_start() -> None:
    with pytest.raises(SettingsError, match=f"an image of {FLORENCE_ID} alone has {MANIFEST.num_image_tokens}"):
        check_positions(MANIFEST, Settings(decoder_max_positions=MANIFEST.num_image_tokens))
