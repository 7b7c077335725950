"""The lines that a gateway logs once it is ready: its addresses, and what it serves."""

from collections.abc import Iterable

from service.inference.served_models import ServedModel
from service.settings import Settings
from wire.artifacts.devices import decoder_device

_ANY_HOST = ("0.0.0.0", "::", "127.0.0.1", "::1")


def greeting(settings: Settings, models: Iterable[ServedModel]) -> list[str]:
    """Return a line each for the page, REST, the contract, gRPC and the models."""
    scheme = "http" if settings.tls_certificate_file is None else "https"
    host = "localhost" if settings.host in _ANY_HOST else settings.host
    url = f"{scheme}://{host}:{settings.port}"
    served: list[str] = []
    for model in models:
        device, _ = settings.device_of(model.runner_id)
        served.append(f"{model.id} ({decoder_device(device)}, {model.precision})")
    return [
        f"page    {url}/playground",
        f"REST    {url}/v1/predict and /v1/compare",
        f"docs    {url}/docs",
        f"gRPC    {host}:{settings.grpc_port}" if settings.grpc_port else "gRPC    off",
        f"models  {', '.join(served)}",
    ]
