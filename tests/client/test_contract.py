"""The generated gRPC code of the client is that of the service, and the client's calls exist in
it.
"""

import pytest

from diptych_client.transports import COMPARE, MODELS, PREDICT, TASKS, Operation
from diptych_client.transports import vision_pb2 as client_pb
from service.rpc.proto import vision_pb2 as service_pb
from tests.support.export_cli import ROOT


@pytest.mark.parametrize("name", ["vision_pb2.py", "vision_pb2.pyi"])
def test_the_generated_code_is_that_of_the_service(name: str) -> None:
    ours = (ROOT / "client" / "diptych_client" / "transports" / name).read_bytes()
    assert ours == (ROOT / "service/rpc/proto" / name).read_bytes(), "stale: make proto"


def test_one_process_can_load_both() -> None:
    assert client_pb.__name__ != service_pb.__name__
    assert client_pb.Answer(id="1") == service_pb.Answer(id="1")


@pytest.mark.parametrize(
    "operation", [PREDICT, COMPARE, MODELS, TASKS], ids=lambda operation: operation.method
)
def test_an_operation_has_the_messages_of_its_method(operation: Operation[object]) -> None:
    method = service_pb.DESCRIPTOR.services_by_name["Vision"].methods_by_name[operation.method]
    assert operation.request.DESCRIPTOR is method.input_type
    assert operation.response.DESCRIPTOR is method.output_type
