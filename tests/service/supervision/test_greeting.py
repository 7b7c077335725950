"""The lines of a service that is ready."""

from pathlib import Path

from service.settings import Settings
from service.supervision.greeting import greeting
from tests.support.fake_service import served_models

MODELS = list(served_models())


def test_each_address_and_each_model_with_device_and_precision_is_named() -> None:
    lines = greeting(Settings(port=3100, grpc_port=3101, device="cpu"), MODELS)
    models = [f"{model.id} (cpu, {model.precision})" for model in MODELS]
    assert [line.split(maxsplit=1) for line in lines] == [
        ["page", "http://localhost:3100/playground"],
        ["REST", "http://localhost:3100/v1/predict and /v1/compare"],
        ["docs", "http://localhost:3100/docs"],
        ["gRPC", "localhost:3101"],
        ["models", ", ".join(models)],
    ]


def test_another_host_tls_and_no_grpc_are_shown() -> None:
    settings = Settings(host="10.0.0.7", grpc_port=0, tls_certificate_file=Path("chain.pem"))
    page, _, _, grpc, _ = greeting(settings, MODELS)
    assert page.endswith("https://10.0.0.7:3000/playground")
    assert grpc.endswith("off")
