"""The four workloads and their sizes, the same for every server of a model.

mixed         (a) each request with another task and another image
one_image     (b) every task of the model about one image, sent concurrently; another image in every
              round
decode_heavy  (c) answers of 8 to 256 tokens about an image that was sent before
single        (d) as mixed, one client, one request at a time

`mixed_4` is mixed with four clients, for the plot only. Sizes are fixed for the embedded
checkpoints. At base scale they follow from the machine's speed: where it is slow, rounds have fewer
requests, down to a minimum, and a round is cut after twice its expected time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from laboratory.bench.material.records import Question, SceneMaterial

WorkloadName = Literal["mixed", "mixed_4", "one_image", "decode_heavy", "single"]
NUM_CLIENTS: dict[WorkloadName, int] = {
    "mixed": 16,
    "mixed_4": 4,
    "one_image": 16,
    "decode_heavy": 16,
    "single": 1,
}

SHORT_TOKENS = 8
LENGTHS = (SHORT_TOKENS, 32, SHORT_TOKENS, 64, SHORT_TOKENS, 128, SHORT_TOKENS, 256)
NUM_WARM_UP = 2

_EMBEDDED_LIMIT_S = 30.0
_SHORT_ROUNDS = 3  # rounds of the short run
# Shares of a server's time at base scale; the rest is for its start.
_SHARES: dict[WorkloadName, float] = {
    "mixed": 0.45,
    "one_image": 0.15,
    "decode_heavy": 0.2,
    "single": 0.1,
}
_NUM_TASKS = 10  # tasks of one_image
_DECODE_HEAVY_COST = 2.0  # cost of its request, in mixed requests
_LIMIT_FACTOR = 2.0
_MIN_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request, for our API and for a peer."""

    image: Path
    question: Question
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The rounds of one workload."""

    workload: WorkloadName
    num_requests: int
    num_rounds: int
    limit_s: float  # per round


class Scenes:
    """The scenes of a model, each used once: no two rounds have the same image."""

    def __init__(self, scenes: Sequence[SceneMaterial]) -> None:
        self._scenes = iter(scenes)

    def take(self, count: int) -> list[SceneMaterial]:
        """Return the next `count` scenes; raise `ValueError` if there are fewer."""
        taken = list(islice(self._scenes, count))
        if len(taken) < count:
            raise ValueError(f"the material has {count - len(taken)} scenes too few")
        return taken


def requests_of(workload: WorkloadName, scenes: Scenes, num_requests: int) -> list[BenchRequest]:
    """Return one round of a workload; `one_image` always has one request per task."""
    match workload:
        case "mixed" | "mixed_4" | "single":
            return mixed(scenes.take(num_requests))
        case "one_image":
            return every_task(scenes.take(1)[0])
        case "decode_heavy":
            return decode_heavy(scenes.take(1)[0], num_requests)


def mixed(scenes: Sequence[SceneMaterial]) -> list[BenchRequest]:
    """Return a request per scene, cycling through tasks and each task's questions."""
    return [
        _request(scene, _nth_by_task(scene.questions, index)) for index, scene in enumerate(scenes)
    ]


def every_task(scene: SceneMaterial) -> list[BenchRequest]:
    """Return the first question of each task about one scene."""
    return [_request(scene, questions[0]) for questions in _by_task(scene.questions).values()]


def decode_heavy(scene: SceneMaterial, num_requests: int) -> list[BenchRequest]:
    """Return requests about one scene whose lengths cycle through `LENGTHS`."""
    requests = (
        _request(scene, _nth_by_task(scene.questions, index)) for index in range(num_requests)
    )
    return [
        replace(request, max_new_tokens=LENGTHS[index % len(LENGTHS)])
        for index, request in enumerate(requests)
    ]


def embedded_plan(is_endless: bool) -> tuple[RoundPlan, ...]:
    """Return the rounds of an embedded checkpoint; only endless ones generate long answers."""
    if is_endless:
        return (RoundPlan("decode_heavy", 32, 3, _EMBEDDED_LIMIT_S),)
    return (
        RoundPlan("single", 10, 3, _EMBEDDED_LIMIT_S),
        RoundPlan("mixed_4", 32, 1, _EMBEDDED_LIMIT_S),
        RoundPlan("mixed", 64, 3, _EMBEDDED_LIMIT_S),
        RoundPlan("one_image", _NUM_TASKS, 3, _EMBEDDED_LIMIT_S),
    )


def short_plan() -> tuple[RoundPlan, ...]:
    """Return single rounds of the workloads of an embedded checkpoint, in turns."""
    return _SHORT_ROUNDS * (
        RoundPlan("single", 10, 1, _EMBEDDED_LIMIT_S),
        RoundPlan("mixed", 32, 1, _EMBEDDED_LIMIT_S),
        RoundPlan("one_image", _NUM_TASKS, 1, _EMBEDDED_LIMIT_S),
    )


def base_plan(request_s: float, allowance_s: float) -> tuple[RoundPlan, ...]:
    """Return the rounds of a model of real size.

    `request_s` is the time of one request to the first peer, `allowance_s` that of all rounds of
    one server.
    """
    # number of mixed requests that fit each share
    budget = {workload: share * allowance_s / request_s for workload, share in _SHARES.items()}
    clients = NUM_CLIENTS["mixed"]
    num_single = _clamped(budget["single"], 3, 8, 1)
    num_mixed = _clamped(budget["mixed"], clients, 3 * clients, clients)
    num_decode_heavy = _clamped(
        budget["decode_heavy"] / _DECODE_HEAVY_COST, len(LENGTHS), 32, len(LENGTHS)
    )
    num_images = _clamped(budget["one_image"] / _NUM_TASKS, 1, 3, 1)
    return (
        RoundPlan("single", num_single, 1, _limit_s(num_single * request_s)),
        RoundPlan("mixed", num_mixed, 1, _limit_s(num_mixed * request_s)),
        RoundPlan("one_image", _NUM_TASKS, num_images, _limit_s(_NUM_TASKS * request_s)),
        RoundPlan(
            "decode_heavy",
            num_decode_heavy,
            1,
            _limit_s(num_decode_heavy * request_s * _DECODE_HEAVY_COST),
        ),
    )


def _clamped(value: float, least: int, most: int, multiple_of: int) -> int:
    return min(most, max(least, int(value) // multiple_of * multiple_of))


def _limit_s(expected_s: float) -> float:
    return max(_MIN_LIMIT_S, _LIMIT_FACTOR * expected_s)


def _request(scene: SceneMaterial, question: Question) -> BenchRequest:
    return BenchRequest(scene.image, question, question.max_new_tokens)


def _nth_by_task(questions: Sequence[Question], index: int) -> Question:
    tasks = list(_by_task(questions).values())
    of_task = tasks[index % len(tasks)]
    return of_task[index // len(tasks) % len(of_task)]


def _by_task(questions: Sequence[Question]) -> dict[str, list[Question]]:
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    return by_task
