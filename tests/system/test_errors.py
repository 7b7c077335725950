"""Every error of the contract, from the running service: status, code, the field at fault, and what
is allowed.
"""

import base64
import hashlib
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.export_cli import ModelStore
from tests.support.processes import run_folder_of
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png

KEY = "a-key-of-ours"
PREDICT = "/v1/predict"


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["request_id"] == response.headers["X-Request-Id"]
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "allowed"),
    [
        ({"colour": "red"}, 400, "invalid_request", "colour", "max_new_tokens"),
        ({"region": "[0, 0, 9999, 10]"}, 400, "invalid_request", "region", "320"),
        ({"max_new_tokens": "4096"}, 400, "invalid_request", "max_new_tokens", "320"),
        ({"model": "gpt"}, 404, "unknown_model", "model", "florence-2-mini"),
        ({"model": "paligemma-mini"}, 422, "unsupported_task", "task", "captioning"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(
    client: httpx.Client, fields: dict[str, str], status: int, code: str, param: str, allowed: str
) -> None:
    form = {"task": "region_description", "region": "[0, 0, 90, 90]"} | fields
    response = client.post(PREDICT, data=form, files={"image": scene_png()})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert allowed in error["message"]


@pytest.fixture(scope="module")
def small(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with one model, small limits and an API key."""
    folder = tmp_path_factory.mktemp("small")
    keys = folder / "keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest() + "\n")
    with forked_service(
        exported.home,
        folder / "service.log",
        DIPTYCH_MODELS="florence-2-mini",
        DIPTYCH_API_KEYS_FILE=str(keys),
        DIPTYCH_MAX_IMAGE_PIXELS="100000",
        DIPTYCH_MAX_BODY_BYTES="200000",
        DIPTYCH_MAX_PENDING_REQUESTS="2",
    ) as running:
        yield running


def asked(
    service: RunningService, image: bytes, key: str | None = KEY, **headers: str
) -> httpx.Response:
    if key:
        headers["Authorization"] = f"Bearer {key}"
    form = {"task": "dense_region_captioning"}
    return httpx.post(
        f"{service.url}{PREDICT}", data=form, files={"image": image}, headers=headers, timeout=60
    )


def test_too_many_pixels_are_413(small: RunningService) -> None:
    response = asked(small, scene_png(size_wh=(400, 300)))
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (
        413,
        "image_too_large",
        "image",
    )
    assert "100000" in error["message"]


def test_too_many_bytes_are_413(small: RunningService) -> None:
    response = asked(small, os.urandom(300_000))
    assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
    body = {"image": base64.b64encode(os.urandom(300_000)).decode(), "task": "ocr"}
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(f"{small.url}{PREDICT}", json=body, headers=headers).status_code == 413


def test_overload_is_429_at_once_and_accepted_requests_are_answered(small: RunningService) -> None:
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda _: asked(small, scene_png()), range(32)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 429}
    for response in responses:
        if response.status_code == 429:
            assert error_of(response)["code"] == "overloaded"
            assert int(response.headers["Retry-After"]) >= 1


def kill(service: RunningService, part: str) -> None:
    os.kill(service.parts()[part], signal.SIGKILL)


def test_a_decoder_that_cannot_be_reached_is_503(small: RunningService) -> None:
    """The last of that service, whose runner does not come back."""
    assert asked(small, scene_png()).status_code == 200
    for address in run_folder_of(small.process.pid).glob("*.sock"):  # the runners' sockets
        address.unlink()
    kill(small, "florence-2-mini-runner")
    response = asked(small, scene_png())
    assert (response.status_code, error_of(response)["code"]) == (503, "not_ready")
    assert "florence-2-mini" in error_of(response)["message"]


def test_a_bad_setting_stops_the_start(exported: ModelStore) -> None:
    run = started(exported.home, {"DIPTYCH_PROT": "3000"})
    assert run.returncode != 0
    assert "DIPTYCH_PROT is not a setting" in run.stderr
    assert "Traceback" not in run.stderr


def test_artifacts_that_were_changed_stop_the_start(exported: ModelStore, tmp_path: Path) -> None:
    home = tmp_path / "bentoml"
    store = ModelStore(home)
    subprocess.run(["cp", "-r", str(exported.home), str(home)], check=True)
    with (store.newest("paligemma-mini") / "decoder.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    run = started(home, {})
    assert run.returncode != 0
    assert "decoder.safetensors has sha256" in run.stderr
    assert "Traceback" not in run.stderr


def started(home: Path, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return ModelStore(home).forked("-m", "service.supervision.supervisor", **settings)
