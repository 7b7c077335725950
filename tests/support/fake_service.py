"""The real core over fake runners, with synthetic manifests of the embedded models."""

import asyncio
import base64
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from PIL import Image

from service.admission.api_keys import UNLIMITED, Quota
from service.admission.places import RequestContext
from service.errors import ServiceError
from service.images.fetching import ImageFetcher
from service.images.handle_store import HandleStore
from service.inference.core import Comparison, Core, CoreLimits
from service.inference.models import ModelClients, RunnerModel, ServedModels
from service.inference.prediction import Answer
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.runner_calls import RunnerClient, WrittenAnswers
from service.outbound.program import DirectCalls
from service.settings import Settings
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.results import Result
from tests.support.catalog import FLORENCE, PALIGEMMA, ROOT
from tests.support.fake_runners import FAKE_IMAGE_TOKENS, FakeChannel, FakeDecoder, FakeEncoder
from tests.support.image_files import encoded as encoded
from wire.artifacts.manifest import Manifest, Part, Precision

FLORENCE_ID = FLORENCE.id
PALIGEMMA_ID = PALIGEMMA.id
CHECKPOINT = "c" * 64
IMAGE_SIZE_WH = (640, 480)
ANSWER_SIZE_WH = (200, 100)
INPUT_SIZE_WH = (192, 96)  # not square, so that swapped sides are detected
NUM_IMAGE_TOKENS = FAKE_IMAGE_TOKENS
FLOAT32: dict[Part, Precision] = {"encoder": "float32", "decoder": "float32"}

# Answers of the fake decoders, by prompt.
FLORENCE_ANSWERS = {
    "What does the image describe?": "a red circle",
    "Locate the objects with category name in the image.": (
        "red circle<loc_100><loc_200><loc_500><loc_600>"
    ),
    "Locate red circle in the image.": "red circle<loc_100><loc_200><loc_500><loc_600>",
    "Locate blue square in the image.": "",
    "Locate red circle in the image with mask": (
        "<loc_100><loc_200><loc_500><loc_200><loc_500><loc_600>"
    ),
    "What is the text in the image?": "HELLO",
    "what is it?": "a circle",
    "What is the region <loc_100><loc_100><loc_900><loc_900>?": "circle",
    "What is the text in the image, with regions?": (
        "HI" + "".join(f"<loc_{bin}>" for bin in (1, 2, 9, 2, 9, 8, 1, 8))
    ),
}
PALIGEMMA_ANSWERS = {
    "caption en": "red circle",
    "detect red circle": "<loc0200><loc0100><loc0600><loc0500> red circle",
    "segment red circle": "<loc0200><loc0100><loc0600><loc0500>" + "<seg000>" * 16 + " red circle",
    "ocr": "HELLO",
    "answer en what is it?": "circle",
}


def served(entry: CatalogEntry) -> RunnerModel:
    """Return a model as the gateway serves it, with a synthetic manifest."""
    manifest = Manifest(
        model_id=entry.id,
        family=entry.family,
        source=entry.source,
        revision=None,
        build_key="0" * 64,
        checkpoint=CHECKPOINT,
        precision={"cpu": FLOAT32, "cuda": FLOAT32},
        image_size_wh=INPUT_SIZE_WH,
        resample=Image.Resampling.BICUBIC,
        num_image_tokens=NUM_IMAGE_TOKENS,
        hidden_size=1,
        versions={},
        files={},
        parity={},
    )
    masks = ROOT / entry.source / (entry.mask_decoder or "none")
    return RunnerModel(
        entry=entry,
        manifest=manifest,
        precision="float32",
        mask_decoder=MaskDecoder.load(masks) if masks.is_file() else None,
    )


def served_models(*entries: CatalogEntry) -> ServedModels:
    return ServedModels({entry.id: served(entry) for entry in entries or (FLORENCE, PALIGEMMA)})


def runner_model(models: ServedModels, model_id: str = FLORENCE_ID) -> RunnerModel:
    model = models.get(model_id)
    assert isinstance(model, RunnerModel)
    return model


def make_core(
    encoders: Mapping[str, FakeEncoder] | None = None,
    decoders: Mapping[str, FakeDecoder] | None = None,
    max_image_pixels: int = 1_000_000,
    max_pending: int = 8,
    max_running: int = 8,
    max_waiting_tokens: int = 1_000_000,
    max_bytes: int = 1_000_000_000,
    entries: Sequence[CatalogEntry] = (FLORENCE, PALIGEMMA),
    fetcher: ImageFetcher | None = None,
    is_up: bool = True,
    handles: HandleStore | None = None,
) -> Core:
    """Return a core over fake runners; `is_up`: the one of Florence-2 is ready."""
    encoders = {FLORENCE_ID: FakeEncoder(), PALIGEMMA_ID: FakeEncoder()} | dict(encoders or {})
    decoders = {
        FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS),
        PALIGEMMA_ID: FakeDecoder(PALIGEMMA_ANSWERS),
    } | dict(decoders or {})
    models = served_models(*entries)
    runners: dict[str, RunnerClient] = {}
    for model in models:
        if model.backend_id == model.id:
            is_ready = is_up or model.id != FLORENCE_ID
            channel = FakeChannel(encoders[model.id], decoders[model.id], is_up=is_ready)
            runners[model.id] = RunnerClient(model.id, channel)
    limits = CoreLimits(
        max_image_pixels=max_image_pixels,
        max_pending_requests=max_pending,
        max_running_requests=max_running,
        max_request_bytes=max_bytes,
        max_decoded_images=2,
        max_waiting_tokens=max_waiting_tokens,
    )
    fetcher = fetcher or ImageFetcher([], Settings().max_body_bytes, DirectCalls())
    return Core(models, ModelClients(runners=runners), limits, fetcher, handles)


def context(
    request_id: str = "request-1", timeout_s: float = math.inf, quota: Quota = UNLIMITED
) -> RequestContext:
    return RequestContext(request_id, "test", time.monotonic() + timeout_s, quota)


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


PNG = encoded(Image.new("RGB", IMAGE_SIZE_WH, (200, 30, 30)))


def typed_answer(result: Result) -> Answer:
    """Return an answer about an image of `ANSWER_SIZE_WH`, without a generated text."""
    _, request = parse_fields(PredictFields, {"task": "ocr"})
    written = cast("WrittenAnswers", None)
    return Answer(served(FLORENCE), request, ANSWER_SIZE_WH, result, written, {})


T = TypeVar("T")


OD_PROMPT = "Locate the objects with category name in the image."


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def predict(core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any) -> Answer:
    return run(core.predict(image, fields, context(timeout_s=timeout_s)))


def compare(
    core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any
) -> Comparison:
    return run(core.compare(image, fields, context(timeout_s=timeout_s)))


def codes(comparison: Comparison) -> dict[str, str]:
    return {
        model.id: outcome.code if isinstance(outcome, ServiceError) else "ok"
        for model, outcome in comparison.answers
    }


def florence_fails(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})
