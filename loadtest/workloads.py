"""Which requests a server gets: the four workloads, the same for every server.

mixed         (a) every request another task and an image of its own
one_image     (b) every task of the model about one image, all sent at once; every round another image
decode_heavy  (c) answers of 8 to 256 tokens about an image that was asked about before
single        (d) as mixed, one client, one request at a time

`mixed_4` is mixed with four clients, for the plot alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from loadtest.material import Question, SceneMaterial

WorkloadName = Literal["mixed", "mixed_4", "one_image", "decode_heavy", "single"]
NUM_CLIENTS: dict[WorkloadName, int] = {"mixed": 16, "mixed_4": 4, "one_image": 16, "decode_heavy": 16, "single": 1}

SHORT_TOKENS = 8
LENGTHS = (SHORT_TOKENS, 32, SHORT_TOKENS, 64, SHORT_TOKENS, 128, SHORT_TOKENS, 256)
NUM_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request, for our API and for a peer."""

    image: Path
    question: Question
    max_new_tokens: int


class Scenes:
    """The scenes of a model, each given out once: no two rounds see the same image."""

    def __init__(self, scenes: Sequence[SceneMaterial]) -> None:
        self._scenes = iter(scenes)

    def take(self, count: int) -> list[SceneMaterial]:
        """Return the next `count` scenes; raise `ValueError` when there are no more."""
        taken = list(islice(self._scenes, count))
        if len(taken) < count:
            raise ValueError(f"the material has {count - len(taken)} scenes too few")
        return taken


def requests_of(workload: WorkloadName, scenes: Scenes, num_requests: int) -> list[BenchRequest]:
    """Return one round of a workload; `one_image` has a request for each task, however many are asked for."""
    match workload:
        case "mixed" | "mixed_4" | "single":
            return mixed(scenes.take(num_requests))
        case "one_image":
            return every_task(scenes.take(1)[0])
        case "decode_heavy":
            return decode_heavy(scenes.take(1)[0], num_requests)


def mixed(scenes: Sequence[SceneMaterial]) -> list[BenchRequest]:
    """Return a request about each scene that goes round the tasks, and round the questions of a task."""
    return [_asked(scene, _nth_by_task(scene.questions, index)) for index, scene in enumerate(scenes)]


def every_task(scene: SceneMaterial) -> list[BenchRequest]:
    """Return the first question of each task about one scene."""
    return [_asked(scene, questions[0]) for questions in _by_task(scene.questions).values()]


def decode_heavy(scene: SceneMaterial, num_requests: int) -> list[BenchRequest]:
    """Return questions about one scene whose lengths go round `LENGTHS`; the first warms the cache of who has one."""
    asked = [_nth_by_task(scene.questions, index) for index in range(num_requests)]
    return [
        replace(_asked(scene, question), max_new_tokens=LENGTHS[index % len(LENGTHS)])
        for index, question in enumerate(asked)
    ]


def _asked(scene: SceneMaterial, question: Question) -> BenchRequest:
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
