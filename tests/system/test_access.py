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
from tests.support.api_keys import hash_of
from tests.support.attack_urls import attacks
from tests.support.export_cli import ModelStore
from tests.support.processes import run_folder_of
from tests.support.running_service import Access, RunningService, forked_service, free_port
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"
KEY = "key-of-the-operator"
LIMITED_KEY = "key-with-limits"
LATER_KEY = "key-of-later"
WRONG_KEY = "key-of-nobody"
QUESTION = "is-there-a-xylophone"
LABEL = "a-heptagon-of-felt"
UNKNOWN = "unknown-field-of-a-client"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PICKLE = "application/vnd.bentoml+pickle"


@dataclass(frozen=True, slots=True)
class ClosedService:
    service: RunningService
    keys_file: Path
    ca_pem: bytes

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(
            self.service.grpc_address, grpc.ssl_channel_credentials(self.ca_pem)
        )


@pytest.fixture(scope="module")
def closed(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClosedService]:
    folder = tmp_path_factory.mktemp("closed")
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    keys = folder / "keys"
    keys.write_text(f"{hash_of(KEY)} name=operator\n{hash_of(LIMITED_KEY)} requests_per_minute=2\n")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    with forked_service(
        exported.home,
        folder / "service.log",
        Access("https", context, KEY),
        DIPTYCH_MODELS=MODEL,
        DIPTYCH_API_KEYS_FILE=str(keys),
        DIPTYCH_METRICS_NEED_KEY="true",
        DIPTYCH_HEALTH_NEEDS_KEY="true",
        DIPTYCH_TLS_CERTIFICATE_FILE=str(folder / "tls.pem"),
        DIPTYCH_TLS_KEY_FILE=str(folder / "tls.pem"),
        DIPTYCH_URL_HOSTS="*",
        DIPTYCH_URL_TIMEOUT_S="2",
    ) as service:
        yield ClosedService(service, keys, ca.cert_pem.bytes())


@pytest.fixture
def client(closed: ClosedService) -> Iterator[httpx.Client]:
    with closed.service.client() as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def metadata(key: str) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in bearer(key).items()]


def ask(client: httpx.Client, **fields: str) -> httpx.Response:
    return client.post(
        "/v1/predict", data={"task": "captioning", **fields}, files={"image": scene_png()}
    )


def test_both_ports_speak_tls_and_nothing_else(closed: ClosedService, client: httpx.Client) -> None:
    answer = ask(client).json()
    with closed.channel() as channel:
        request = pb.PredictRequest(image=scene_png(), task="captioning")
        told: Any = VisionStub(channel).Predict(request, timeout=60, metadata=metadata(KEY))
    assert told.text == answer["result"]["text"]
    with pytest.raises(httpx.TransportError):
        httpx.get(closed.service.url.replace("https", "http"))
    with (
        grpc.insecure_channel(closed.service.grpc_address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        VisionStub(channel).Predict(request, timeout=5, metadata=metadata(KEY))
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


PROTECTED = ("/metrics", "/livez", "/readyz", "/healthz", "/metrics%0a", "/v2/health/live")


@pytest.mark.parametrize("path", [*PROTECTED, "/v2/health/ready", "/v1/models"])
def test_metrics_and_health_need_a_key(client: httpx.Client, path: str) -> None:
    for headers in ({"Authorization": ""}, bearer(WRONG_KEY)):
        response = client.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert client.get(path).is_success


def test_health_over_grpc_needs_a_key(closed: ClosedService) -> None:
    request = health_pb2.HealthCheckRequest(service="diptych.v1.Vision")
    with closed.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        inference: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        live = inference_pb2.ServerLiveRequest()
        for refused in (
            lambda: health.Check(request, timeout=60),
            lambda: next(health.Watch(request, timeout=60)),
            lambda: inference.ServerLive(live, timeout=60),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                refused()
            assert caught.value.code() == UNAUTHENTICATED
        serving = health_pb2.HealthCheckResponse.SERVING
        # the port's own look at the runners comes once a second
        assert any(
            told.status == serving
            for told in health.Watch(request, timeout=60, metadata=metadata(KEY))
        )
        assert health.Check(request, timeout=60, metadata=metadata(KEY)).status == serving
        assert inference.ServerLive(live, timeout=60, metadata=metadata(KEY)).live


def test_what_a_key_has_used_counts_for_both_ports(
    closed: ClosedService, client: httpx.Client
) -> None:
    models = pb.ListModelsRequest()
    with closed.channel() as channel:
        VisionStub(channel).ListModels(models, timeout=60, metadata=metadata(LIMITED_KEY))
        assert client.get("/v1/models", headers=bearer(LIMITED_KEY)).status_code == 200
        response = client.get("/v1/models", headers=bearer(LIMITED_KEY))
        with pytest.raises(grpc.RpcError) as caught:
            VisionStub(channel).ListModels(models, timeout=60, metadata=metadata(LIMITED_KEY))
    trailing: dict[str, Any] = {
        datum.key: datum.value for datum in caught.value.trailing_metadata()
    }
    assert (response.status_code, caught.value.code()) == (429, grpc.StatusCode.RESOURCE_EXHAUSTED)
    for wait_s in (response.headers["retry-after"], trailing["retry-after"]):
        assert 0 < int(wait_s) <= 30


def test_a_key_that_is_written_into_the_file_is_accepted(
    closed: ClosedService, client: httpx.Client
) -> None:
    assert client.get("/v1/models", headers=bearer(LATER_KEY)).status_code == 401
    with closed.keys_file.open("a") as file:
        file.write(f"{hash_of(LATER_KEY)} name=later\n")
    wait_until(lambda: client.get("/v1/models", headers=bearer(LATER_KEY)).status_code == 200)
    assert client.get("/v1/models").status_code == 200


def test_no_attack_url_is_read(client: httpx.Client) -> None:
    for url in attacks(free_port()):
        response = client.post("/v1/predict", json={"image": url, "task": "ocr"})
        error = response.json()["error"]
        assert error["param"] == "image", url
        assert error["code"] in ("invalid_request", "unsupported_image"), url


@dataclass(frozen=True, slots=True)
class WritesFile:
    """An object that writes a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_no_process_unpickles_what_it_is_sent(
    closed: ClosedService, client: httpx.Client, tmp_path: Path
) -> None:
    trace = tmp_path / "unpickled"
    body = pickle.dumps({"memory": WritesFile(str(trace))})
    headers = {"Content-Type": PICKLE}
    for path in ("/v1/predict", "/", "/encode", "/write"):
        assert client.post(path, content=body, headers=headers).status_code in (400, 404, 405), path
    folder = run_folder_of(closed.service.process.pid)
    for api in ("encode", "write", "stream"):
        transport = httpx.HTTPTransport(uds=str(folder / "0.sock"))
        with httpx.Client(transport=transport, base_url="http://runner") as runner:
            assert runner.post(f"/{api}", content=body, headers=headers).status_code == 415
    assert not trace.exists()


def test_the_log_holds_no_image_prompt_answer_key_or_url(
    closed: ClosedService, client: httpx.Client
) -> None:
    image = scene_png()
    token = "token-of-a-url"
    encoded_image = base64.b64encode(image).decode()
    answers = [
        ask(client, detail="detailed"),
        ask(client, task="visual_question_answering", question=QUESTION),
        ask(client, task="open_vocabulary_detection", labels=LABEL),
        ask(client, task=UNKNOWN),
        ask(client, **{UNKNOWN: LABEL}),
        client.post("/v1/predict", json={"task": "ocr", "image": encoded_image}),
        client.post("/v1/predict", json={"task": "ocr", "image": encoded_image[:-9]}),
        client.post("/v1/predict", json={"task": "ocr", "image": f"http://localhost/?{token}"}),
        client.post(
            "/v1/predict", json={"task": "ocr", "image": f"http://nothing.invalid/?{token}"}
        ),
        client.get(f"/v1/models?{token}", headers=bearer(WRONG_KEY)),
    ]
    events = parse_events(ask(client, detail="detailed", stream="true").text)
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": "data:,"}},
    ]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
    client.post("/v1/chat/completions", json=chat)
    told = [answers[0].json()["result"]["text"], events[-1][1]["result"]["text"]]
    assert all(len(text) > 20 for text in told)
    log = closed.service.log.read_text()
    assert log.count("request ") > len(answers)
    keys = [KEY, LIMITED_KEY, LATER_KEY, WRONG_KEY]
    fields = [QUESTION, LABEL, UNKNOWN, token]
    content = [*told, encoded_image[:40], repr(image)[2:42]]
    for secret in (*keys, *map(hash_of, keys), *fields, *content):
        assert secret not in log, secret
