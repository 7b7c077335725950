"""The typed result as the content of a completion, for `response_format`.

A client's schema is untrusted: keywords that run its regular expressions are refused, a reference
is followed within the schema only, and alternatives are tried for a bounded number of steps.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from service.errors import InvalidRequest
from service.inference.prediction import Answer
from service.openai.wire import ResponseFormat
from service.schema.rendering import RESULT

_PARAM = "response_format.json_schema.schema"
_REFUSED = ("pattern", "patternProperties", "format", "$dynamicRef")
_MAX_STEPS = 20_000
_steps: ContextVar[Iterator[int]] = ContextVar("steps")


class _TooManySteps(Exception):
    """The schema has too many alternatives, or refers to itself."""


def _counted(keyword: str) -> Any:
    check = Draft202012Validator.VALIDATORS[keyword]

    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if next(_steps.get(), None) is None:
            raise _TooManySteps
        return check(validator, value, instance, schema)

    return counted


def _refused(keyword: str) -> Any:
    def refuse(*_: Any) -> None:
        raise InvalidRequest(f"{_PARAM} uses {keyword}, which is not supported", _PARAM)

    return refuse


_KEYWORDS = {name: _counted(name) for name in Draft202012Validator.VALIDATORS}
_KEYWORDS |= {name: _refused(name) for name in _REFUSED}
_Validator = extend(Draft202012Validator, _KEYWORDS)  # type: ignore[no-untyped-call]


def check_schema(schema: dict[str, Any]) -> None:
    """Raise `InvalidRequest` unless a client's value is a JSON Schema (draft 2020-12)."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problem = f"{_PARAM} is not a JSON Schema: {error.json_path} breaks {error.validator!r}"
        raise InvalidRequest(problem, _PARAM) from error


def typed_content(answer: Answer, response_format: ResponseFormat) -> str:
    """Return the typed result as JSON; raise `InvalidRequest` if it does not match the schema."""
    result = RESULT.validate_python(answer.result)
    content: str = result.model_dump_json()
    if response_format.json_schema is None:
        return content
    _steps.set(iter(range(_MAX_STEPS)))
    validator = _Validator(response_format.json_schema.schema_, registry=Registry())
    try:
        validator.validate(result.model_dump(mode="json"))
    except ValidationError as error:
        mismatch = f"the result of {answer.request.task.id} does not match {_PARAM}"
        where = f"{error.json_path} breaks {error.validator!r}"
        form = "its form is that of `result` of POST /v1/predict"
        raise InvalidRequest(f"{mismatch}: {where}; {form}", _PARAM) from error
    except Unresolvable as error:
        raise InvalidRequest(f"{_PARAM} refers to something outside itself", _PARAM) from error
    except (_TooManySteps, RecursionError) as error:
        problem = f"{_PARAM} has too many alternatives or refers to itself"
        raise InvalidRequest(problem, _PARAM) from error
    return content
