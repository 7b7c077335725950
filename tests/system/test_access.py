"""The running service with everything closed that can be: TLS, keys, limits, URLs; and its whole
log afterwards.
"""

import base64
import pickle
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.rpc.proto import inference_pb2, inference_pb2_grpc
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import hash_of, write_keys
from tests.support.export_cli import ModelStore
from tests.support.processes import run_folder_of
from tests.support.running_service import Access, RunningService, bearer, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events

MODEL = "florence-2-mini"
KEY = "key-of-the-operator"
WRONG_KEY = "key-of-nobody"
QUESTION = "is-there-a-xylophone"
LABEL = "a-heptagon-of-felt"
UNKNOWN = "unknown-field-of-a-client"
TOKEN = "token-of-a-url"
PICKLE = {"Content-Type": "application/vnd.bentoml+pickle"}
HEALTH_PATHS = ("/metrics", "/livez", "/readyz", "/healthz", "/metrics%0a", "/v2/health/live")


@dataclass(frozen=True, slots=True)
class ClosedService:
    service: RunningService
    ca_pem: bytes

    def channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.ca_pem)
        return grpc.secure_channel(self.service.grpc_address, credentials)


@pytest.fixture(scope="module")
def closed(exported: ModelStore, folder: Path) -> Iterator[ClosedService]:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    settings = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", {KEY: "name=operator"}),
        "DIPTYCH_METRICS_NEED_KEY": "true",
        "DIPTYCH_HEALTH_NEEDS_KEY": "true",
        "DIPTYCH_TLS_CERTIFICATE_FILE": str(folder / "tls.pem"),
        "DIPTYCH_TLS_KEY_FILE": str(folder / "tls.pem"),
        "DIPTYCH_URL_HOSTS": "*",
        "DIPTYCH_URL_TIMEOUT_S": "2",
    }
    access = Access("https", context, KEY)
    with forked_service(exported.home, folder / "service.log", access, **settings) as service:
        yield ClosedService(service, ca.cert_pem.bytes())


@pytest.fixture
def client(closed: ClosedService) -> Iterator[httpx.Client]:
    with closed.service.client() as http:
        yield http


def metadata(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


def test_both_ports_speak_tls_alone(closed: ClosedService) -> None:
    request = pb.PredictRequest(image=scene_png(), task="captioning")
    with closed.channel() as channel:
        answer: Any = VisionStub(channel).Predict(request, timeout=60, metadata=metadata(KEY))
    assert closed.service.predict(task="captioning").json()["result"]["text"] == answer.text
    with pytest.raises(httpx.TransportError):
        httpx.get(closed.service.url.replace("https", "http"))
    with closed.service.vision() as vision, pytest.raises(grpc.RpcError) as caught:
        vision.Predict(request, timeout=5, metadata=metadata(KEY))
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("path", [*HEALTH_PATHS, "/v2/health/ready", "/v1/models"])
def test_metrics_and_health_need_a_key(client: httpx.Client, path: str) -> None:
    for headers in ({"Authorization": ""}, bearer(WRONG_KEY)):
        response = client.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert client.get(path).is_success


def test_health_over_grpc_needs_a_key(closed: ClosedService) -> None:
    request = health_pb2.HealthCheckRequest(service="diptych.v1.Vision")
    live = inference_pb2.ServerLiveRequest()
    with closed.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        inference: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call in (
            lambda: health.Check(request, timeout=60),
            lambda: next(health.Watch(request, timeout=60)),
            lambda: inference.ServerLive(live, timeout=60),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        serving = health_pb2.HealthCheckResponse.SERVING
        # the port's own look at the runners comes once a second
        updates = health.Watch(request, timeout=60, metadata=metadata(KEY))
        assert any(update.status == serving for update in updates)
        assert health.Check(request, timeout=60, metadata=metadata(KEY)).status == serving
        assert inference.ServerLive(live, timeout=60, metadata=metadata(KEY)).live


@dataclass(frozen=True, slots=True)
class WritesFile:
    """An object that writes a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_no_process_unpickles_a_body(
    closed: ClosedService, client: httpx.Client, tmp_path: Path
) -> None:
    trace = tmp_path / "unpickled"
    body = pickle.dumps({"memory": WritesFile(str(trace))})
    for path in ("/v1/predict", "/", "/encode", "/write"):
        response = client.post(path, content=body, headers=PICKLE)
        assert response.status_code in (400, 404, 405), path
    socket = run_folder_of(closed.service.process.pid) / "0.sock"
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://runner") as runner:
        for path in ("/encode", "/write", "/stream"):
            assert runner.post(path, content=body, headers=PICKLE).status_code == 415
    assert not trace.exists()


def test_log_has_no_contents_and_no_keys(closed: ClosedService, client: httpx.Client) -> None:
    """The last of this file."""
    image = scene_png()
    base64_image = base64.b64encode(image).decode()
    forms: list[dict[str, Any]] = [
        {"task": "captioning", "detail": "detailed"},
        {"task": "visual_question_answering", "question": QUESTION},
        {"task": "open_vocabulary_detection", "labels": LABEL},
        {"task": UNKNOWN},
        {"task": "captioning", UNKNOWN: LABEL},
    ]
    answers = [closed.service.predict(image, **form) for form in forms]
    images = (
        base64_image,
        base64_image[:-9],
        f"http://localhost/?{TOKEN}",
        f"http://nothing.invalid/?{TOKEN}",
    )
    for text in images:
        client.post("/v1/predict", json={"task": "ocr", "image": text})
    client.get(f"/v1/models?{TOKEN}", headers=bearer(WRONG_KEY))
    events = parse_events(closed.service.predict(image, **forms[0], stream=True).text)
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": "data:,"}},
    ]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
    client.post("/v1/chat/completions", json=chat)
    texts = [answers[0].json()["result"]["text"], events[-1][1]["result"]["text"]]
    assert all(len(text) > 20 for text in texts)
    log = closed.service.log.read_text()
    assert log.count("request ") > len(forms) + len(images)
    keys = [KEY, WRONG_KEY]
    fields = [QUESTION, LABEL, UNKNOWN, TOKEN]
    contents = [*texts, base64_image[:40], repr(image)[2:42]]
    for secret in (*keys, *map(hash_of, keys), *fields, *contents):
        assert secret not in log, secret
