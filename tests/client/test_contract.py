"""The client's calls exist in the gRPC code of the service, which the client links to."""

import pytest

from diptych_client.transports import vision_pb2 as client_pb
from diptych_client.transports.messages import (
    ANALYZE,
    COMPARE,
    MODELS,
    PREDICT,
    TASKS,
    Operation,
)
from service.rpc.proto import vision_pb2 as service_pb


def test_one_process_can_load_both() -> None:
    assert client_pb.__name__ != service_pb.__name__
    assert client_pb.Answer(id="1") == service_pb.Answer(id="1")


@pytest.mark.parametrize(
    "operation", [PREDICT, COMPARE, ANALYZE, MODELS, TASKS], ids=lambda operation: operation.method
)
def test_an_operation_has_the_messages_of_its_method(operation: Operation[object]) -> None:
    method = service_pb.DESCRIPTOR.services_by_name["Vision"].methods_by_name[operation.method]
    assert operation.request.DESCRIPTOR is method.input_type
    assert operation.response.DESCRIPTOR is method.output_type
