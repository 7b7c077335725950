"""Statuses of gRPC calls to the same errors as over REST."""

import grpc
import pytest

from diptych_client import ConnectionFailed, DeadlineExceeded, DiptychError, InternalError, NotReady, PayloadTooLarge
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_messages import answer_from_message, error_from_call

CODE = grpc.StatusCode


def test_the_trailing_metadata_has_the_error_detail() -> None:
    trailing = {"diptych-code": "not_ready", "diptych-param": "model", "x-request-id": "r", "retry-after": "2"}
    error = error_from_call(CODE.UNAVAILABLE, "starting", trailing, 1.0, "mine")
    assert isinstance(error, NotReady)
    assert (error.code, error.message, error.param, error.request_id) == ("not_ready", "starting", "model", "r")
    assert error.retry_after_s == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (CODE.UNAVAILABLE, ConnectionFailed),
        (CODE.DEADLINE_EXCEEDED, DeadlineExceeded),
        (CODE.RESOURCE_EXHAUSTED, PayloadTooLarge),
        (CODE.UNIMPLEMENTED, InternalError),
    ],
)
def test_without_trailing_metadata_the_status_decides(status: grpc.StatusCode, kind: type[DiptychError]) -> None:
    error = error_from_call(status, "why", {}, 1.0, "mine")
    assert type(error) is kind
    assert error.request_id == "mine"


def test_an_answer_without_a_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="no known kind"):
        answer_from_message(pb.Answer(id="r"))
