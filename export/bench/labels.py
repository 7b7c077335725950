"""Several labels by one prompt, and by one prompt each: `python -m export.bench.labels MODEL
[--scenes N]`.

Asks for all objects of a scene, and for all of them and an absent one, constrained as by the
service, and prints JSON: the accuracy of both ways, and their time for one client and for four, in
turns, medians of the rounds. The time of the encoder is not counted.

    florence2   one prompt: phrase grounding of a caption with all labels; each: open-vocabulary
                detection of one
    paligemma   `detect a ; b`; each: `detect a`
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from export.checkpoints.jobs import CATALOG_FILE
from export.evaluation import evaluation_scene
from export.scenes import questions, render_scene
from export.scenes.questions import joined, with_article
from export.scenes.scoring import Tally, match_boxes
from export.scenes.truth import DetectionsTruth
from runners.artifacts.manifest import read_manifest
from runners.artifacts.store import artifact_folder
from runners.decoder.answers import to_request, to_written
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from runners.transport.messages import SequenceSpec
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.parameters import TaskParameters, parse_parameters
from tasks.parsing import without_article
from tasks.prompts import Prompt
from tasks.results import DetectionsResult
from tasks.table import TASKS

Way = Literal["one prompt", "one prompt each"]
_WAYS: tuple[Way, ...] = ("one prompt", "one prompt each")
_TASK = "open_vocabulary_detection"
_NUM_CLIENTS = (1, 4)
_NUM_ROUNDS = 5
_LIMITS = SchedulerLimits(num_slots=16, max_waiting=64, max_prefill_tokens=4096)
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Labels about one image."""

    features: Tensor  # (N, C)
    labels: tuple[str, ...]
    truth: DetectionsTruth


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded decoder with a scheduler over it."""

    entry: CatalogEntry
    decoder: Decoder
    scheduler: Scheduler

    def detections(self, way: Way, asked: Asked) -> list[dict[str, Any]]:
        """Return the labelled boxes of one answer, as the service sends them."""
        task_id, parameters, prompts = self.prompts(way, asked.labels)
        language = FAMILIES[self.entry.family]
        side_px = self.entry.resolution
        grammar = language.answer_grammar(task_id, parameters)
        texts = self._texts(asked.features, prompts, grammar)
        result = language.parse_answer(
            task_id, parameters, texts, (side_px, side_px), "polygon", None
        )
        assert isinstance(result, DetectionsResult)
        boxes = [asdict(found) for found in result.detections]
        return [box | {"label": without_article(box["label"])} for box in boxes if box["label"]]

    def prompts(
        self, way: Way, labels: Sequence[str]
    ) -> tuple[str, TaskParameters, tuple[Prompt, ...]]:
        """Return the prompts about `labels`, with the task and parameters that they belong to."""
        task_id = _TASK
        given = dict[str, Any](labels=list(labels))
        if self.entry.family == "florence2" and way == "one prompt":
            task_id = "phrase_grounding"
            given = {"caption": joined([with_article(label) for label in labels])}
        parameters = parse_parameters(TASKS[task_id], given)
        entry = replace(self.entry, one_name_per_prompt=way != "one prompt")
        size_wh = (entry.resolution, entry.resolution)
        return (
            task_id,
            parameters,
            FAMILIES[entry.family].task_prompts(entry, task_id, parameters, size_wh),
        )

    def _texts(
        self, features: Tensor, prompts: Sequence[Prompt], grammar: str | None
    ) -> list[GeneratedText]:
        specs = [
            SequenceSpec(
                segments=[(s.text, s.is_control) for s in prompt],
                grammar=grammar,
                timeout_s=_TIMEOUT_S,
            )
            for prompt in prompts
        ]
        requests = [to_request(self.decoder, features, spec) for spec in specs]
        written = [
            to_written(self.decoder, request, future.result(_TIMEOUT_S))
            for request, future in zip(requests, self.scheduler.submit(requests), strict=True)
        ]
        return [
            GeneratedText(w.text, tuple(w.token_ends), tuple(w.logprobs), w.finish_reason)
            for w in written
        ]


@contextmanager
def loaded(model_id: str, folder: Path) -> Iterator[tuple[Model, VisionEncoder]]:
    """Load a model's artifacts in float32 and run a scheduler over the decoder."""
    decoder = load_decoder(folder, read_manifest(folder).family, "float32", "cpu")
    encoder = VisionEncoder(folder, precision="float32")
    encoder.load()
    scheduler = Scheduler(decoder, model_id, _LIMITS)
    scheduler.start()
    try:
        yield Model(load_catalog(CATALOG_FILE)[model_id], decoder, scheduler), encoder
    finally:
        scheduler.stop()


def asked_labels(encoder: VisionEncoder, side_px: int, scenes: range) -> dict[str, list[Asked]]:
    """Return for each kind of question those about all scenes with at least two different
    objects.
    """
    kinds: dict[str, list[Asked]] = {"all present": [], "one absent": []}
    for scene in map(evaluation_scene, scenes):
        names = tuple(dict.fromkeys(drawn.name for drawn in scene.objects))
        if len(names) < 2:
            continue
        features = encoder.encode(np.asarray(render_scene(scene, side_px))[None])[0]
        (several,) = (
            question for question in questions(scene) if question.name == f"{_TASK} several"
        )
        scaled = several.scaled((side_px, side_px))
        truth = scaled.truth
        labels = scaled.parameters["labels"]
        assert isinstance(truth, DetectionsTruth)
        assert isinstance(labels, list)
        kinds["all present"].append(Asked(features, names, truth))
        kinds["one absent"].append(Asked(features, tuple(dict.fromkeys(map(str, labels))), truth))
    return kinds


def accuracy(model: Model, way: Way, asked: Sequence[Asked]) -> dict[str, float]:
    """Return F1 at two overlaps, and the share of answers that have all boxes and no other."""
    with ThreadPoolExecutor(max(_NUM_CLIENTS)) as clients:
        answers = list(clients.map(partial(model.detections, way), asked))
    at_50, at_75 = (
        [
            match_boxes(boxes, each.truth.boxes, min_iou)
            for boxes, each in zip(answers, asked, strict=True)
        ]
        for min_iou in (0.5, 0.75)
    )
    right = [tally.num_right == tally.num_answered == tally.num_expected for tally in at_50]
    f1 = (round(sum(tallies, Tally()).f1, 4) for tallies in (at_50, at_75))
    return dict(
        zip(
            ("f1_at_50", "f1_at_75", "right"), (*f1, round(statistics.fmean(right), 4)), strict=True
        )
    )


def times(model: Model, asked: Sequence[Asked], num_clients: int) -> dict[str, Any]:
    """Return the median time of an answer by each way, and the median ratio of rounds that follow
    each other.
    """
    rounds = [[_round(model, way, asked, num_clients) for way in _WAYS] for _ in range(_NUM_ROUNDS)]
    ratio = statistics.median(each[1][1] / each[0][1] for each in rounds)
    median_ms = {
        way: round(statistics.median(each[index][0] for each in rounds) * 1000, 1)
        for index, way in enumerate(_WAYS)
    }
    return {"median_ms": median_ms, "time_each_by_one": round(ratio, 2)}


def _round(model: Model, way: Way, asked: Sequence[Asked], num_clients: int) -> tuple[float, float]:
    """Return the median latency and the time of all answers."""

    def latency_s(each: Asked) -> float:
        start_s = time.perf_counter()
        model.detections(way, each)
        return time.perf_counter() - start_s

    start_s = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        latencies_s = list(clients.map(latency_s, asked))
    return statistics.median(latencies_s), time.perf_counter() - start_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model of BentoML's model store."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.labels", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model")
    parser.add_argument(
        "--scenes", type=int, default=1000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--timed",
        type=int,
        default=60,
        metavar="N",
        help="questions of a round; default: %(default)s",
    )
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with loaded(parsed.model, artifact_folder(parsed.model)) as (model, encoder):
        for kind, asked in asked_labels(
            encoder, model.entry.resolution, range(parsed.scenes)
        ).items():
            named = {"model": parsed.model, "labels": kind, "questions": len(asked)}
            for way in _WAYS:
                print(json.dumps(named | {"way": way} | accuracy(model, way, asked)), flush=True)
            for num_clients in _NUM_CLIENTS:
                timed = times(model, asked[: parsed.timed], num_clients)
                print(json.dumps(named | {"clients": num_clients} | timed), flush=True)


if __name__ == "__main__":
    main()
