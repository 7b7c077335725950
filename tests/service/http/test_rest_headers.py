import asyncio
import re
import time

import pytest

from service.settings import Settings
from tests.support.fake_runners import FakeEncoder
from tests.support.fake_service import FLORENCE_ID, make_core
from tests.support.rest_client import OCR, client, error_of


@pytest.mark.parametrize("request_id", ["a", "A-1_b.2", "x" * 64])
def test_request_id_of_the_client_is_kept(request_id: str) -> None:
    for response in (
        client().predict(OCR, X_Request_Id=request_id),
        client().predict({}, X_Request_Id=request_id),
    ):
        assert response.headers["x-request-id"] == request_id
    assert client().predict(OCR, X_Request_Id=request_id).json()["id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "a b", "x" * 65, "a\tb", "<script>", "\xe4"])
def test_invalid_request_id_is_replaced(request_id: str | None) -> None:
    headers = {"X-Request-Id": request_id.encode("latin-1")} if request_id is not None else {}
    ids = [
        client().send("POST", "/v1/predict", json=OCR, headers=headers).headers["x-request-id"]
        for _ in range(2)
    ]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "deadline", ["0", "-1", "1.5", "soon", "", "1e3", "\xb2", "00", "9" * 16, "9" * 400, "9" * 5000]
)
def test_invalid_deadline_is_rejected(deadline: str) -> None:
    response = client().send(
        "POST", "/v1/predict", json=OCR, headers={"X-Deadline-Ms": deadline.encode("latin-1")}
    )
    error = error_of(response)
    assert error["code"] == "invalid_request"
    assert "X-Deadline-Ms must be a whole number of milliseconds" in error["message"]


def test_request_ends_at_its_deadline() -> None:
    never = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
    start_s = time.monotonic()
    assert error_of(client(never).predict(OCR, X_Deadline_Ms="100"))["code"] == "deadline_exceeded"
    assert 0.1 <= time.monotonic() - start_s < 30


def test_deadline_is_at_most_the_service_timeout() -> None:
    never = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
    impatient = client(never, values=Settings(request_timeout_s=1))
    start_s = time.monotonic()
    assert (
        error_of(impatient.predict(OCR, X_Deadline_Ms="999999999999"))["code"]
        == "deadline_exceeded"
    )
    assert time.monotonic() - start_s < 30
