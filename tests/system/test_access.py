"""The running service with everything closed that can be: TLS, keys, limits, URLs; and its whole
log afterwards.
"""

import base64
import pickle
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import hash_of, write_keys
from tests.support.export_cli import ModelStore
from tests.support.running_service import (
    Access,
    RunningService,
    bearer,
    forked_service,
    parse_events,
)
from tests.support.scene_images import scene_png

MODEL = "florence-2-mini"
KEY = "key-of-the-operator"
WRONG_KEY = "key-of-nobody"
QUESTION = "is-there-a-xylophone"
LABEL = "a-heptagon-of-felt"
UNKNOWN = "unknown-field-of-a-client"
TOKEN = "token-of-a-url"
PICKLE = {"Content-Type": "application/vnd.bentoml+pickle"}
METADATA = [("authorization", f"Bearer {KEY}")]


def run_folder_of(supervisor: int) -> Path:
    links = [fd.readlink() for fd in Path(f"/proc/{supervisor}/fd").iterdir()]
    return next(link for link in links if link.name.startswith("diptych-"))


@pytest.fixture(scope="module")
def closed(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    settings = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", {KEY: "name=operator"}),
        "DIPTYCH_METRICS_NEED_KEY": "true",
        "DIPTYCH_TLS_CERTIFICATE_FILE": str(folder / "tls.pem"),
        "DIPTYCH_TLS_KEY_FILE": str(folder / "tls.pem"),
        "DIPTYCH_URL_HOSTS": "*",
    }
    access = Access("https", context, KEY)
    with forked_service(exported.home, folder / "service.log", access, **settings) as service:
        yield service


@pytest.fixture
def client(closed: RunningService) -> Iterator[httpx.Client]:
    with closed.client() as http:
        yield http


@pytest.fixture
def channel(closed: RunningService, folder: Path) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    with grpc.secure_channel(closed.grpc_address, credentials) as channel:
        yield channel


def test_both_ports_speak_tls_alone(closed: RunningService, channel: grpc.Channel) -> None:
    request = pb.PredictRequest(image=scene_png(), task="captioning")
    answer: Any = VisionStub(channel).Predict(request, timeout=60, metadata=METADATA)
    assert closed.predict(task="captioning").json()["result"]["text"] == answer.text
    with closed.client() as client:
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
    with pytest.raises(httpx.TransportError):
        httpx.get(closed.url.replace("https", "http"))
    with closed.vision() as vision, pytest.raises(grpc.RpcError) as caught:
        vision.Predict(request, timeout=5, metadata=METADATA)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class WritesFile:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        return open, (self._path, "w")


def test_no_process_unpickles_a_body(
    closed: RunningService, client: httpx.Client, tmp_path: Path
) -> None:
    body = pickle.dumps({"memory": WritesFile(tmp_path / "unpickled")})
    for path in ("/v1/predict", "/", "/encode", "/write"):
        response = client.post(path, content=body, headers=PICKLE)
        assert response.status_code in (400, 404, 405), path
    socket = run_folder_of(closed.process.pid) / "0.sock"
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://runner") as runner:
        for path in ("/encode", "/write", "/stream"):
            assert runner.post(path, content=body, headers=PICKLE).status_code == 415
    assert not list(tmp_path.iterdir())


def test_log_has_no_contents_and_no_keys(closed: RunningService, client: httpx.Client) -> None:
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
    answers = [closed.predict(image, **form) for form in forms]
    hosts = ("localhost", "nothing.invalid")
    images = (base64_image, base64_image[:-9], *(f"http://{host}/?{TOKEN}" for host in hosts))
    for text in images:
        client.post("/v1/predict", json={"task": "ocr", "image": text})
    client.get(f"/v1/models?{TOKEN}", headers=bearer(WRONG_KEY))
    events = parse_events(closed.predict(image, **forms[0], stream=True).text)
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    texts = [answers[0].json()["result"]["text"], events[-1][1]["result"]["text"]]
    assert all(len(text) > 20 for text in texts)
    log = closed.log.read_text()
    assert log.count("request ") > len(forms) + len(images)
    keys = [KEY, WRONG_KEY, hash_of(KEY), hash_of(WRONG_KEY)]
    contents = [*texts, base64_image[:40], repr(image)[2:42]]
    for secret in (*keys, QUESTION, LABEL, UNKNOWN, TOKEN, *contents):
        assert secret not in log, secret
