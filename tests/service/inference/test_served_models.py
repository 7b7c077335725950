import pytest

from service.inference.served_models import check_positions
from service.settings import Settings, SettingsError
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
