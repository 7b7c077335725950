"""Errors that every interface answers with."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import Overloaded
from service.validation import rejected_field


class Inner(BaseModel):
    values: list[Annotated[int, Field(ge=0)]]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("document", "name", "message"),
    [
        ({}, "name", "name is missing; it is required"),
        ({"name": 5}, "name", "name is 5: Input should be a valid string"),
        (
            {"name": "a", "inner": {"values": [1, -2]}},
            "inner.values.1",
            "inner.values.1 is -2: Input should",
        ),
        ({"name": ["x" * 10_000]}, "name", "name is ['xxx"),
        ({"name": "a", "x" * 10_000: 1}, "x" * 80, "unknown field 'xxx"),
    ],
)
def test_first_rejected_field(document: dict[str, object], name: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Document.model_validate(document)
    rejected = rejected_field(caught.value)
    assert rejected.name == name
    assert rejected.message.startswith(message)
    assert len(rejected.message) < 300


@pytest.mark.parametrize(("given_s", "whole_s"), [(0, 1), (0.2, 1), (1, 1), (1.2, 2), (60, 60)])
def test_retry_is_in_whole_seconds(given_s: float, whole_s: int) -> None:
    error = Overloaded("full", given_s)
    assert error.retry_after_s == whole_s
    assert error.message == f"full; retry after {whole_s} s"
