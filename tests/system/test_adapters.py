"""LoRA adapters served end to end: catalog, export, and the running service with a base and three
of its adapters.

Two change the language model, and one the vision tower too.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.checks.reference import Reference
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import VISION_OPTIONS, merged, write_adapter, write_catalog
from tests.support.reference_answers import reference_answer
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import encoded, scene_image, scene_png

BASE = "florence-2-mini"
VISION = "shapes-vision"
ADAPTERS = ("shapes-a", "shapes-b", VISION)
PARAGRAPH = "Describe with a paragraph what is shown in the image."
INPUT_SIZE_WH = (192, 192)
CACHE_MB = 1
CACHED_IMAGES = 60  # more than the features cache holds


@pytest.fixture(scope="module")
def tuned(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelStore, Path]:
    """A store with a base and its adapters, and the catalog that has them."""
    folder = tmp_path_factory.mktemp("tuned")
    store = ModelStore(folder / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    for seed, adapter in enumerate(ADAPTERS):
        options = VISION_OPTIONS[BASE] if adapter == VISION else {}
        write_adapter(Reference.load(MODELS / BASE).model, folder / adapter, seed, **options)
    rows = {
        each: {"adapter_of": BASE, "source": str(folder / each), "tasks": {"ocr": None}}
        for each in ADAPTERS
    }
    catalog = write_catalog(folder / "catalog.yaml", rows)
    run = store.forked("-m", "export", *ADAPTERS, DIPTYCH_CATALOG=str(catalog))
    assert run.returncode == 0, run.stderr
    return store, catalog


@pytest.fixture(scope="module")
def adapted_service(tuned: tuple[ModelStore, Path]) -> Iterator[RunningService]:
    store, catalog = tuned
    settings = {"DIPTYCH_CATALOG": str(catalog), "DIPTYCH_MODELS": ",".join((BASE, *ADAPTERS))}
    settings["DIPTYCH_VISION_CACHE_MB"] = str(CACHE_MB)
    with forked_service(store.home, store.home / "service.log", **settings) as running:
        yield running


def asked(http: httpx.Client, path: str, image: bytes, **fields: str) -> Any:
    response = http.post(
        path, data={"task": "captioning", "detail": "paragraph"} | fields, files={"image": image}
    )
    assert response.status_code == 200, response.text
    return response.json()


def test_an_adapter_shares_image_features_with_its_base_unless_it_changes_the_vision_tower(
    adapted_service: RunningService,
) -> None:
    with adapted_service.client() as http:
        image = scene_png(3)
        answers = [
            asked(http, "/v1/predict", image, model=model) for model in (BASE, *ADAPTERS) * 2
        ]
        assert [answer["model"] for answer in answers] == [BASE, *ADAPTERS] * 2
        assert [answer["vision_cache"] for answer in answers] == ["miss", "hit", "hit", "miss"] + [
            "hit"
        ] * 4
        assert len({answer["raw_text"] for answer in answers}) > 2
        compared = asked(http, "/v1/compare", image)["answers"]
        assert [each["raw_text"] for each in compared] * 2 == [
            answer["raw_text"] for answer in answers
        ]


def test_answers_of_an_adapter_with_a_vision_part_are_those_of_the_merged_model(
    adapted_service: RunningService, tuned: tuple[ModelStore, Path]
) -> None:
    reference = Reference.load(MODELS / BASE)
    reference = Reference(merged(reference.model, tuned[1].parent / VISION), reference.processor)
    with adapted_service.client() as http:
        for seed in range(6):
            image = scene_image(seed, INPUT_SIZE_WH)
            answer = asked(
                http,
                "/v1/predict",
                encoded(image),
                model=VISION,
                max_new_tokens="24",
                num_beams="1",
            )
            written = reference_answer(
                reference, PARAGRAPH, image, reference.image_features([image])[0], 24
            )
            expected = reference.processor.tokenizer.decode(
                written.token_ids, skip_special_tokens=True
            )
            assert answer["raw_text"] == expected


def test_images_that_base_and_adapter_encode_in_one_batch_give_the_answers_of_each_alone(
    adapted_service: RunningService,
) -> None:
    pairs = [(seed, model) for seed in range(20, 28) for model in (BASE, VISION)]
    with adapted_service.client() as http, ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(
                lambda pair: asked(http, "/v1/predict", scene_png(pair[0]), model=pair[1]), pairs
            )
        )
        assert {answer["vision_cache"] for answer in together} == {"miss"}
        for seed in range(100, 100 + CACHED_IMAGES):
            asked(http, "/v1/predict", scene_png(seed), model=BASE, max_new_tokens="1")
        for (seed, model), answer in zip(pairs, together, strict=True):
            alone = asked(http, "/v1/predict", scene_png(seed), model=model)
            assert (alone["vision_cache"], alone["raw_text"]) == ("miss", answer["raw_text"])


def test_a_second_export_is_skipped_and_one_over_another_base_is_refused_at_the_start(
    tuned: tuple[ModelStore, Path], tmp_path: Path
) -> None:
    store, catalog = tuned
    run = store.export(ADAPTERS[0], "--if-changed", DIPTYCH_CATALOG=str(catalog))
    assert run.stdout.splitlines() == [f"{ADAPTERS[0]}: up to date"]
    other = ModelStore(tmp_path / "bentoml")
    shutil.copytree(store.home, other.home, symlinks=True)
    manifest = other.newest(ADAPTERS[0]) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"base_build_key": "0" * 64}))
    settings = {"DIPTYCH_CATALOG": str(catalog), "DIPTYCH_MODELS": ",".join((BASE, *ADAPTERS))}
    start = other.forked("-m", "service.supervision.supervisor", **settings)
    assert start.returncode == 1
    assert f"export the adapter again: python -m export {ADAPTERS[0]}" in start.stderr
