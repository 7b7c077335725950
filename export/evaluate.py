"""Ask a running service about scenes whose truth is known; report accuracy and latency for each model and question.

    python -m export.evaluate [--url URL] [--models ID …] [--scenes N] [--size WxH …]

It speaks to the service over REST only, one request at a time. Seeds start where no training takes its own from.
"""

import argparse
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from export.scenes import Question, Scorecard, questions, render_scene, sample_scene, score_answer
from export.scenes.scoring import Measure

FIRST_SEED = 900_000_000
_CANVAS_PX = 384  # a scene is drawn at this size, then stretched to the size asked for
_SHOWN_MEASURES: tuple[Measure, ...] = ("exact", "f1_at_50", "f1_at_75", "mask_iou", "empty")

Size = tuple[int, int]  # width, height, px


@dataclass(slots=True)
class Evaluation:
    """What one model got right, and how long it took."""

    scorecard: Scorecard = field(default_factory=Scorecard)
    latencies_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by question name

    def score(self, name: str, measure: Measure) -> float:
        """Return F1, accuracy or mean IoU of a question by its name."""
        return self.scorecard.tally(name, measure).f1


def evaluate(client: httpx.Client, model_id: str, num_scenes: int, sizes_wh: Sequence[Size]) -> Evaluation:
    """Ask `model_id` every question that it offers about `num_scenes` scenes, the sizes taken in turn."""
    offered = _offered_tasks(client, model_id)
    evaluation = Evaluation()
    for index in range(num_scenes):
        size_wh = sizes_wh[index % len(sizes_wh)]
        for question, png in _asked(FIRST_SEED + index, size_wh):
            if question.task in offered:
                _ask(client, model_id, question, png, size_wh, evaluation)
    return evaluation


def evaluation_table(evaluations: dict[str, Evaluation]) -> str:
    """Return a Markdown table: a row for each question, for each model its measures and p50 / p95 of one client, ms."""
    names = dict.fromkeys(name for e in evaluations.values() for name in e.latencies_ms)
    rows = ["| question | " + " | ".join(f"{model} | p50 / p95 ms" for model in evaluations) + " |"]
    rows.append("|---" * (1 + 2 * len(evaluations)) + "|")
    for name in names:
        cells = [cell for evaluation in evaluations.values() for cell in _cells(evaluation, name)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(evaluation: Evaluation, name: str) -> tuple[str, str]:
    if name not in evaluation.latencies_ms:
        return "", ""
    shown = [m for m in _SHOWN_MEASURES if (name, m) in evaluation.scorecard.tallies]
    scores = ", ".join(f"{measure} {evaluation.score(name, measure):.2f}" for measure in shown)
    percentiles = statistics.quantiles(evaluation.latencies_ms[name] * 2, n=20)  # twice: one value has no quantiles
    return scores, f"{percentiles[9]:.0f} / {percentiles[18]:.0f}"


def _offered_tasks(client: httpx.Client, model_id: str) -> frozenset[str]:
    response = client.get("/v1/models").raise_for_status()
    tasks = {model["id"]: model["tasks"] for model in response.json()["data"]}
    if model_id not in tasks:
        raise ValueError(f"{model_id} is not served; there are {', '.join(tasks)}")
    return frozenset(tasks[model_id])


def _asked(seed: int, size_wh: Size) -> Iterator[tuple[Question, bytes]]:
    """Yield every question about a scene, with its image as PNG of `size_wh`."""
    scene = sample_scene(seed)
    file = io.BytesIO()
    render_scene(scene, _CANVAS_PX).resize(size_wh).save(file, "PNG")
    for question in questions(scene):
        yield question.scaled(size_wh), file.getvalue()


def _ask(
    client: httpx.Client, model_id: str, question: Question, png: bytes, size_wh: Size, evaluation: Evaluation
) -> None:
    parameters = {
        name: json.dumps(value) if isinstance(value, list | tuple) else value
        for name, value in question.parameters.items()
    }
    fields = {"model": model_id, "task": question.task, **parameters}
    start_s = time.monotonic()
    response = client.post("/v1/predict", data=fields, files={"image": ("scene.png", png, "image/png")})
    latency_s = time.monotonic() - start_s
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        return  # a variant of the task that this model does not offer
    if response.is_error:
        raise RuntimeError(f"{model_id} answered {question.name} with {response.status_code}: {response.text}")
    evaluation.scorecard += score_answer(response.json()["result"], question, size_wh)
    evaluation.latencies_ms[question.name].append(latency_s * 1000)


def _size(text: str) -> Size:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    """Evaluate models of a running service and print the table."""
    parser = argparse.ArgumentParser("python -m export.evaluate", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--models", nargs="*", help="ids; default is all that are served")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--size", nargs="*", type=_size, default=[(192, 192), (640, 480), (300, 500), (1024, 1024)])
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60) as client:
        served = [model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]]
        models = arguments.models or served
        print(evaluation_table({m: evaluate(client, m, arguments.scenes, arguments.size) for m in models}))


if __name__ == "__main__":
    main()
