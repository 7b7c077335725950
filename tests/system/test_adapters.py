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
from tests.support.decoder_cases import reference_answer
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import VISION_OPTIONS, merged, write_adapter, write_catalog
from tests.support.running_service import RunningService, forked_service, post_form
from tests.support.scene_images import encoded, scene_image, scene_png
from tests.system.test_starts import failure_of_start

BASE = "florence-2-mini"
VISION = "shapes-vision"
ADAPTERS = ("shapes-a", "shapes-b", VISION)
PARAGRAPH = "Describe with a paragraph what is shown in the image."
INPUT_SIZE_WH = (192, 192)
NUM_UNCACHED = 60  # more images than the features cache holds


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    store = ModelStore(folder / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    rows: dict[str, dict[str, Any]] = {}
    for seed, adapter in enumerate(ADAPTERS):
        options = VISION_OPTIONS[BASE] if adapter == VISION else {}
        source = write_adapter(
            Reference.load(MODELS / BASE).model, folder / adapter, seed, **options
        )
        rows[adapter] = {"adapter_of": BASE, "source": str(source), "tasks": {"ocr": None}}
    catalog = str(write_catalog(folder / "catalog.yaml", rows))
    run = store.forked("-m", "export", *ADAPTERS, DIPTYCH_CATALOG=catalog)
    assert run.returncode == 0, run.stderr
    again = store.export(ADAPTERS[0], "--if-changed", DIPTYCH_CATALOG=catalog)
    assert again.stdout.splitlines() == [f"{ADAPTERS[0]}: up to date"]
    settings = {
        "DIPTYCH_CATALOG": catalog,
        "DIPTYCH_MODELS": ",".join((BASE, *ADAPTERS)),
        "DIPTYCH_VISION_CACHE_MB": "1",
    }
    with forked_service(store.home, folder / "service.log", **settings) as running:
        yield running


def ask(client: httpx.Client, image: bytes, path: str = "/v1/predict", **fields: object) -> Any:
    form = {"task": "captioning", "detail": "paragraph"} | fields
    response = post_form(client, path, image, form)
    assert response.status_code == 200, response.text
    return response.json()


def test_adapters_share_the_features_of_their_base(client: httpx.Client) -> None:
    """But for the one that changes the vision tower."""
    image = scene_png(3)
    answers = [ask(client, image, model=model) for model in (BASE, *ADAPTERS) * 2]
    assert [answer["model"] for answer in answers] == [BASE, *ADAPTERS] * 2
    outcomes = [answer["vision_cache"] for answer in answers]
    assert outcomes == ["miss", "hit", "hit", "miss", *["hit"] * 4]
    texts = [answer["raw_text"] for answer in answers]
    assert len(set(texts)) > 2
    compared = ask(client, image, "/v1/compare")["answers"]
    assert [answer["raw_text"] for answer in compared] * 2 == texts


def test_vision_adapter_answers_as_the_merged_model(client: httpx.Client, folder: Path) -> None:
    base = Reference.load(MODELS / BASE)
    reference = Reference(merged(base.model, folder / VISION), base.processor)
    for seed in range(6):
        image = scene_image(seed, INPUT_SIZE_WH)
        answer = ask(client, encoded(image), model=VISION, max_new_tokens=24, num_beams=1)
        features = reference.image_features([image])[0]
        expected = reference_answer(reference, PARAGRAPH, image, features, 24)
        text = reference.processor.tokenizer.decode(expected.token_ids, skip_special_tokens=True)
        assert answer["raw_text"] == text


def test_shared_batches_have_the_answers_of_single_images(client: httpx.Client) -> None:
    pairs = [(seed, model) for seed in range(20, 28) for model in (BASE, VISION)]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda pair: ask(client, scene_png(pair[0]), model=pair[1]), pairs)
        )
    assert {answer["vision_cache"] for answer in together} == {"miss"}
    for seed in range(100, 100 + NUM_UNCACHED):
        ask(client, scene_png(seed), model=BASE, max_new_tokens=1)
    for (seed, model), answer in zip(pairs, together, strict=True):
        alone = ask(client, scene_png(seed), model=model)
        assert (alone["vision_cache"], alone["raw_text"]) == ("miss", answer["raw_text"])


@pytest.mark.usefixtures("service")
def test_adapter_of_another_base_stops_the_start(folder: Path) -> None:
    """The last of this file: it changes the store."""
    store = ModelStore(folder / "bentoml")
    manifest = store.newest(ADAPTERS[0]) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"base_build_key": "0" * 64}))
    models = ",".join((BASE, *ADAPTERS))
    catalog = str(folder / "catalog.yaml")
    failure = failure_of_start(store, DIPTYCH_CATALOG=catalog, DIPTYCH_MODELS=models)
    assert f"export the adapter again: python -m export {ADAPTERS[0]}" in failure
