import pytest

from export.artifacts.vision_module import ImageInput
from export.checks.parity import make_probes
from tasks.catalog import load_catalog
from tests.support.export_cli import EMBEDDED, MODELS

CATALOG = load_catalog(MODELS / "catalog.yaml")
IMAGE_INPUT = ImageInput((96, 64), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_probes_have_the_models_size_and_differ_in_image_and_prompt(model_id: str) -> None:
    probes = make_probes(CATALOG[model_id], IMAGE_INPUT)
    assert {probe.image.size for probe in probes} == {(96, 64)}
    assert len({probe.image.tobytes() for probe in probes}) == 20
    assert len({probe.text for probe in probes}) >= 10


def test_probes_of_florence_2_cycle_through_its_prompts_including_location_tokens() -> None:
    probes = make_probes(CATALOG["florence-2-mini"], IMAGE_INPUT)
    texts = " ".join(probe.text for probe in probes)
    assert all(task in texts for task in ("object", "caption", "region", "text", "<loc_"))
