"""Several images in one predict or compare: answers in order, each with its own error."""

from typing import Any

import pytest

from service.admission.api_keys import ApiKeys
from tests.support.api_keys import hash_of
from tests.support.fake_service import data_url, make_core
from tests.support.rest_client import SMALL_PNG, client, error_of, fits

IMAGE = data_url(SMALL_PNG)
BROKEN = "bm9uZQ=="


def send(path: str, **fields: Any) -> Any:
    return client(make_core(max_pending=2)).send("POST", path, json=fields)


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/predict", "AnswerJson"), ("/v1/compare", "ComparisonJson")]
)
def test_each_image_has_its_answer_or_its_error(path: str, name: str) -> None:
    images = [IMAGE, BROKEN, *[IMAGE] * 6]  # more than there are places
    document = send(path, images=images, task="ocr").json()
    assert fits(document, "SeveralJson")
    assert [("error" in each) for each in document["answers"]] == [False, True, *[False] * 6]
    assert all(fits(each, name) for each in document["answers"] if "error" not in each)


def test_files_of_a_form_are_several_images() -> None:
    files = [("images", SMALL_PNG), ("images", b"none"), ("images", SMALL_PNG)]
    response = client().send("POST", "/v1/predict", data={"task": "ocr"}, files=files)
    assert [("error" in each) for each in response.json()["answers"]] == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"images": []}, "invalid_request", "images"),
        ({"images": [IMAGE] * 33}, "invalid_request", "images"),
        ({"images": IMAGE}, "invalid_request", "images"),
        ({"images": [3]}, "invalid_request", "image"),
        ({"images": [IMAGE], "image": IMAGE}, "invalid_request", "images"),
        ({"images": [IMAGE] * 2, "stream": True}, "invalid_request", "stream"),
        ({"images": [IMAGE] * 2, "labels": ["a"]}, "invalid_request", "labels"),
        ({"images": [IMAGE] * 2, "model": "gpt"}, "unknown_model", "model"),
    ],
)
def test_a_wrong_field_fails_the_whole_request(
    fields: dict[str, Any], code: str, param: str
) -> None:
    error = error_of(send("/v1/predict", task="ocr", **fields))
    assert (error["code"], error["param"]) == (code, param)


def test_more_files_than_allowed_are_refused() -> None:
    files = [("images", SMALL_PNG)] * 33
    response = client().send("POST", "/v1/predict", data={"task": "ocr"}, files=files)
    assert error_of(response)["code"] == "invalid_request"


def test_each_image_counts_as_a_request_of_the_key(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hash_of('my-key')} requests_per_minute=2 max_concurrent=1")
    api = client(keys=ApiKeys.load(keys))
    headers = {"Authorization": "Bearer my-key"}
    body = {"images": [IMAGE] * 3, "task": "ocr"}
    response = api.send("POST", "/v1/predict", json=body, headers=headers)
    codes = [each.get("error", {}).get("code") for each in response.json()["answers"]]
    assert sorted(map(str, codes)) == ["None", "None", "overloaded"]
