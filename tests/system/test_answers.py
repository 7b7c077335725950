"""The form of answers, and that an answer is the same however it was asked for."""

import base64
import json
from itertools import chain
from typing import Any

import httpx
from pycocotools import mask as coco_mask

from service.schema.rendering import AnswerJson, ComparisonJson
from tests.support.scene_images import encoded, scene_image, scene_png

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
VARYING = {"id", "timings_ms", "vision_cache"}

REQUESTS: list[dict[str, Any]] = [
    {"task": "captioning"},
    {"task": "captioning", "detail": "detailed", "model": FLORENCE},
    {"task": "captioning", "model": PALIGEMMA, "language": "de"},
    {"task": "object_detection"},
    {"task": "open_vocabulary_detection", "labels": ["circle", "red star", "square"]},
    {"task": "open_vocabulary_detection", "labels": ["circle", "square"], "model": PALIGEMMA},
    {"task": "phrase_grounding", "caption": "a red circle and a blue square"},
    {"task": "phrase_grounding", "phrases": ["a red star", "a purple circle"], "model": PALIGEMMA},
    {"task": "region_proposal"},
    {"task": "dense_region_captioning"},
    {"task": "instance_segmentation", "phrase": "purple square"},
    {"task": "instance_segmentation", "phrase": "purple square", "model": PALIGEMMA},
    {"task": "instance_segmentation", "region": [50.0, 100.0, 140.5, 180.0], "mask_format": "rle"},
    {
        "task": "instance_segmentation",
        "phrase": "purple square",
        "model": PALIGEMMA,
        "mask_format": "rle",
    },
    {"task": "ocr"},
    {"task": "ocr", "model": PALIGEMMA},
    {"task": "ocr_with_regions"},
    {"task": "region_description", "region": [50, 100, 140, 180], "detail": "category"},
    {"task": "visual_question_answering", "question": "how many shapes are there?"},
    {"task": "captioning", "temperature": 0.7, "top_p": 0.9, "seed": 5, "max_new_tokens": 20},
    {"task": "object_detection", "num_beams": 3},
    {
        "task": "instance_segmentation",
        "phrase": "purple square",
        "model": PALIGEMMA,
        "num_beams": 2,
    },
    {"task": "dense_region_captioning", "constrained": False},
]
FEW = [REQUESTS[index] for index in (1, 5, 12, 11, 16, 20)]  # each kind of result, both models


def post_form(
    client: httpx.Client, path: str, image: bytes, fields: dict[str, Any]
) -> httpx.Response:
    form = {
        name: json.dumps(value) if isinstance(value, list | bool) else value
        for name, value in fields.items()
    }
    return client.post(path, data=form, files={"image": image})


def post_json(
    client: httpx.Client, path: str, image: bytes, fields: dict[str, Any]
) -> httpx.Response:
    return client.post(path, json={"image": base64.b64encode(image).decode(), **fields})


def comparable(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {name: value for name, value in response.json().items() if name not in VARYING}


def test_answers_keep_to_the_schema(client: httpx.Client) -> None:
    for fields in REQUESTS:
        response = post_form(client, "/v1/predict", scene_png(), fields)
        answer = AnswerJson.model_validate_json(response.content)
        assert answer.task == fields["task"]
        assert (answer.image.width, answer.image.height) == (320, 240)


def rounded(answer: dict[str, Any]) -> Any:
    return json.loads(json.dumps(answer), parse_float=lambda text: round(float(text), 3))


def test_compare_gives_what_predict_gives_each_in_catalog_order(client: httpx.Client) -> None:
    response = client.post("/v1/compare", data={"task": "captioning"}, files={"image": scene_png()})
    comparison = ComparisonJson.model_validate_json(response.content)
    assert [answer.model for answer in comparison.answers] == [FLORENCE, PALIGEMMA]
    for answer in response.json()["answers"]:
        fields = {"task": "captioning", "model": answer["model"]}
        alone = comparable(post_form(client, "/v1/predict", scene_png(), fields))
        assert {name: value for name, value in answer.items() if name not in VARYING} == alone


def test_a_rotated_photo_is_answered_upright(client: httpx.Client) -> None:
    upright = scene_image(size_wh=(320, 240))
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned: shown turned by 90 degrees clockwise
    turned = encoded(upright.rotate(90, expand=True), exif=exif)
    expected = comparable(
        post_form(client, "/v1/predict", encoded(upright), {"task": "object_detection"})
    )
    assert (
        comparable(post_form(client, "/v1/predict", turned, {"task": "object_detection"}))
        == expected
    )


def test_a_mask_and_its_polygons_cover_the_same_pixels(client: httpx.Client) -> None:
    for model, phrase in ((FLORENCE, "purple square"), (PALIGEMMA, "purple square")):
        fields = {"task": "instance_segmentation", "phrase": phrase, "model": model}
        (by_polygon,) = post_form(client, "/v1/predict", scene_png(), fields).json()["result"][
            "instances"
        ]
        rle_fields = {**fields, "mask_format": "rle"}
        (by_mask,) = post_form(client, "/v1/predict", scene_png(), rle_fields).json()["result"][
            "instances"
        ]
        assert set(by_polygon) == {"box", "label", "score", "polygons"}
        assert set(by_mask) == {"box", "label", "score", "mask"}
        assert by_mask["mask"]["size"] == [240, 320]
        rings = [list(chain(*ring)) for ring in by_polygon["polygons"]]
        drawn = coco_mask.merge(coco_mask.frPyObjects(rings, 240, 320))
        assert coco_mask.iou([drawn], [by_mask["mask"]], [0])[0][0] > 0.9


def test_an_enormous_and_a_tiny_image_are_answered_in_their_own_pixels(
    client: httpx.Client,
) -> None:
    for size_wh in ((3000, 2000), (20, 30), (1, 1)):
        fields = {"task": "object_detection"}
        answer = comparable(post_form(client, "/v1/predict", scene_png(3, size_wh), fields))
        for detection in answer["result"]["detections"]:
            x1, y1, x2, y2 = detection["box"]
            assert 0 <= x1 < x2 <= size_wh[0]
            assert 0 <= y1 < y2 <= size_wh[1]
