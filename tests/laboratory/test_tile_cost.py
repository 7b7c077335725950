"""Files that are sent to measure the cost of tiles."""

import numpy as np
from PIL import Image

from imaging.files import ImageLimits, decode_image, read_header
from laboratory.tile_cost import jpeg, unseen

LIMITS = ImageLimits(1_000)


def test_an_unseen_file_has_the_same_pixels_and_another_hash() -> None:
    data = jpeg(Image.radial_gradient("L").resize((16, 16)).convert("RGB"))
    others = [unseen(data, number) for number in (0, 1)]
    assert len({read_header(each, LIMITS).digest for each in (data, *others)}) == 3
    pixels = [np.asarray(decode_image(each, LIMITS)) for each in (data, *others)]
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[0], pixels[2])
