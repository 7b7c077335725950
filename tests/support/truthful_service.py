"""A service without models that knows the evaluation's scenes and answers truthfully by default."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

import httpx
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from export.scenes import Question, questions
from laboratory.evaluation import CONDITIONS, evaluation_scene
from tasks.table import TASKS
from tests.support.served_app import serving_app
from tests.support.true_results import true_result, wrong_result

MODEL_ID = "truthful"
_TIMEOUT_S = 60


def nothing(_index: int, _name: str) -> bool:
    """No question of any scene."""
    return False


@dataclass(slots=True)
class TruthfulService:
    """Offers every task of `tasks`; what it is to do otherwise is decided by scene index and
    question name.
    """

    num_scenes: int
    conditions: tuple[str, ...] = ("plain",)
    tasks: tuple[str, ...] = tuple(TASKS)
    is_wrong: Callable[[int, str], bool] = nothing
    is_not_offered: Callable[[int, str], bool] = nothing
    is_broken: Callable[[int, str], bool] = nothing
    num_refused: int = 0  # so many requests are too much at first
    retry_after_s: int = 0  # what they are told
    num_together: int = 1  # the first so many requests are answered when all of them have come
    num_received: int = 0
    asked_tasks: set[str] = field(default_factory=set)
    _known: dict[bytes, tuple[int, list[Question]]] = field(default_factory=dict)
    _barrier: asyncio.Barrier = field(init=False)

    def app(self) -> Starlette:
        """Return the ASGI app."""
        self._barrier = asyncio.Barrier(self.num_together)
        for index, name in product(range(self.num_scenes), self.conditions):
            scene = evaluation_scene(index)
            image = CONDITIONS[name](scene)
            self._known[image.data] = (
                index,
                [question.scaled(image.size_wh) for question in questions(scene)],
            )
        return Starlette(
            routes=[
                Route("/v1/models", self._list_models),
                Route("/v1/predict", self._predict, methods=["POST"]),
            ]
        )

    async def _list_models(self, _request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": MODEL_ID, "tasks": self.tasks}]})

    async def _predict(self, request: Request) -> JSONResponse:
        self.num_received += 1
        if self.num_received <= self.num_refused:
            return JSONResponse(
                {"error": "too much"}, 429, {"Retry-After": str(self.retry_after_s)}
            )
        if self.num_received <= self.num_together:
            await self._barrier.wait()
        async with request.form() as form:
            image = form["image"]
            assert isinstance(image, UploadFile)
            fields = {
                name: str(value) for name, value in form.items() if name not in ("image", "model")
            }
            index, asked = self._known[await image.read()]
        fields.pop("constrained")
        question = _meant(fields, asked)
        self.asked_tasks.add(question.task)
        if self.is_not_offered(index, question.name):
            return JSONResponse({"error": "not this variant"}, 422)
        if self.is_broken(index, question.name):
            return JSONResponse({"error": "a defect"}, 500)
        result = wrong_result if self.is_wrong(index, question.name) else true_result
        return JSONResponse({"result": result(question.truth)})


def _meant(fields: Mapping[str, str], asked: list[Question]) -> Question:
    """Return the question whose parameters the fields of a form are."""
    parameters = {
        name: json.loads(value) if value.startswith("[") else value
        for name, value in fields.items()
        if name != "task"
    }
    return next(q for q in asked if q.task == fields["task"] and q.parameters == parameters)


@contextmanager
def serving(service: TruthfulService) -> Iterator[httpx.Client]:
    """Serve on a free port; yield a client, whose `base_url` says where."""
    with (
        serving_app(service.app()) as served,
        httpx.Client(base_url=served.url, timeout=_TIMEOUT_S) as client,
    ):
        yield client
