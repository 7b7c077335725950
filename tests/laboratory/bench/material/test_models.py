from pathlib import Path

import pytest
from PIL import Image

from laboratory.bench.material.models import (
    BENCH_MODELS,
    BenchModel,
    checkpoint_folder,
    write_catalog,
    write_checkpoint,
)
from laboratory.bench.peers.generation import Generator, PromptedImage
from tests.support.scene_images import scene_image

ENDLESS = [model for model in BENCH_MODELS if model.is_endless and not model.is_random]


@pytest.mark.parametrize("model", ENDLESS, ids=lambda model: model.id)
def test_endless_checkpoint_generates_max_new_tokens(model: BenchModel, tmp_path: Path) -> None:
    write_checkpoint(model, tmp_path)
    lengths = (8, 100)
    requests = [PromptedImage(picture(), "caption en", length) for length in lengths]
    answers = Generator(tmp_path, num_threads=1).answer(requests)
    assert [answer.generated_tokens for answer in answers] == list(lengths)


def test_endless_checkpoint_is_rewritten_identically(tmp_path: Path) -> None:
    (model, *_) = ENDLESS
    write_checkpoint(model, tmp_path)
    once = (tmp_path / "generation_config.json").read_text()
    write_checkpoint(model, tmp_path)
    assert (tmp_path / "generation_config.json").read_text() == once


def test_the_catalog_of_the_bench_has_its_models_and_their_checkpoints(tmp_path: Path) -> None:
    for model in BENCH_MODELS:
        checkpoint_folder(model, tmp_path).mkdir(parents=True)
    catalog = write_catalog(BENCH_MODELS, tmp_path)
    assert list(catalog) == [model.id for model in BENCH_MODELS]
    assert all(Path(entry.source).is_dir() for entry in catalog.values())


def picture() -> Image.Image:
    return scene_image(seed=5, size_wh=(192, 192))
