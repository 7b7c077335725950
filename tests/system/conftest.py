import pytest

from tests.support.running_service import RunningService


@pytest.fixture(params=["rest", "grpc"])
def url(request: pytest.FixtureRequest, service: RunningService) -> str:
    return service.url if request.param == "rest" else f"grpc://{service.grpc_address}"
