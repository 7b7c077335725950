from pathlib import Path

import pytest

from tests.support.running_service import RunningService


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for the services of a file of tests."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(params=["rest", "grpc"])
def url(request: pytest.FixtureRequest, service: RunningService) -> str:
    return service.url if request.param == "rest" else f"grpc://{service.grpc_address}"
