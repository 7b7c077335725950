"""Malformed requests, derived from valid ones by a seeded generator."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from service.rpc.proto import vision_pb2 as pb

PATHS = ("/v1/predict", "/v1/compare", "/v1/analyze", "/v1/chat/completions")
_ALL_PATHS = (*PATHS, "/v1/images", "/v2/models/florence-2-mini/infer")
_FORM = "multipart/form-data; boundary=b"
_TEXTS = (
    "",
    " ",
    "x" * 5000,
    "\0",
    "<loc_5>",
    "</s>",
    "NaN",
    "https://localhost/",
    "ocr",
    "captioning",
)
_BOXES: tuple[list[float], ...] = (
    [],
    [1, 2, 3, 4],
    [-1, 0, 1, 2],
    [1e309] * 4,
    [4, 3, 2, 1],
    [0.0] * 1000,
)
_VALUES: tuple[object, ...] = (
    *_TEXTS, *_BOXES, None, True, -1, 0, 10**30, 1e308, "\ud800", [[]], ["a"] * 100, {}, {"a": 1},
)  # fmt: skip
_NAMES = (
    "task",
    "model",
    "models",
    "labels",
    "caption",
    "phrases",
    "phrase",
    "region",
    "detail",
    "language",
    "question",
    "max_new_tokens",
    "num_beams",
    "temperature",
    "top_p",
    "seed",
    "constrained",
    "mask_format",
    "min_score",
    "min_precision",
    "nms_iou",
    "tiles",
    "overlap",
    "min_object_px",
    "stream",
    "image",
    "images",
    "steps",
    "x",
)
_TEXT_NAMES = (
    "model",
    "caption",
    "phrase",
    "detail",
    "language",
    "question",
    "mask_format",
    "tiles",
)
_TYPES = (
    _FORM,
    "application/json",
    "text/plain",
    "",
    "multipart/form-data",
    "application/json; charset=utf-16",
)


@dataclass(frozen=True, slots=True)
class MalformedRequest:
    """A request with a malformed body or invalid fields."""

    path: str
    content_type: str
    body: bytes


def malformed_requests(num_requests: int, good: bytes, seed: int = 0) -> Iterator[MalformedRequest]:
    """Yield malformed requests; `good` is a valid image."""
    rng = random.Random(seed)
    makers = (_broken_json, _odd_fields, _broken_form, _any_bytes)
    for _ in range(num_requests):
        content_type, body = rng.choice(makers)(rng, good)
        yield MalformedRequest(rng.choice(_ALL_PATHS), content_type, body)


def malformed_messages(num_messages: int, good: bytes, seed: int = 0) -> Iterator[bytes]:
    """Yield gRPC messages with invalid fields, and bytes that are not a message."""
    rng = random.Random(seed)
    for _ in range(num_messages):
        request = pb.PredictRequest(
            image=good[: rng.randrange(len(good) // 2)],
            task=rng.choice(_TEXTS),
            labels=[rng.choice(_TEXTS) for _ in range(rng.randrange(40))],
            region=rng.choice(_BOXES),
            max_new_tokens=rng.choice((-1, 0, 5, 2**62)),
            temperature=rng.choice((-1.0, 0.0, 1e300, float("nan"))),
        )
        setattr(request, rng.choice(_TEXT_NAMES), rng.choice(_TEXTS))
        data = request.SerializeToString()
        yield data if rng.random() < 0.9 else _cut_or_changed(rng, data)


def _odd_fields(rng: random.Random, _good: bytes) -> tuple[str, bytes]:
    """Return JSON with invalid fields; its image is invalid too, so no model is called."""
    fields = {rng.choice(_NAMES): rng.choice(_VALUES) for _ in range(rng.randrange(1, 6))}
    return "application/json", json.dumps({"task": "ocr", "image": "AAAA", **fields}).encode()


def _broken_json(rng: random.Random, _good: bytes) -> tuple[str, bytes]:
    body = json.dumps(
        {"task": "ocr", "image": "AAAA", "labels": ["a", "b"], "region": [1, 2, 3, 4]}
    ).encode()
    return "application/json", _cut_or_changed(rng, body)


def _broken_form(rng: random.Random, good: bytes) -> tuple[str, bytes]:
    head = b'--b\r\nContent-Disposition: form-data; name="'
    field = (
        head
        + rng.choice(_NAMES).encode()
        + b'"\r\n\r\n'
        + str(rng.choice(_VALUES)).encode(errors="replace")
        + b"\r\n"
    )
    image = (
        head + b'image"; filename="a.png"\r\n\r\n' + good[: rng.randrange(len(good) // 2)] + b"\r\n"
    )
    return rng.choice(_TYPES), _cut_or_changed(rng, image + field + b"--b--\r\n")


def _any_bytes(rng: random.Random, _good: bytes) -> tuple[str, bytes]:
    return rng.choice(_TYPES), rng.randbytes(rng.randrange(2000))


def _cut_or_changed(rng: random.Random, body: bytes) -> bytes:
    place = rng.randrange(len(body))
    if rng.random() < 0.5:
        return body[:place]
    return body[:place] + rng.randbytes(rng.randrange(1, 4)) + body[place + 1 :]
