"""Rounds, measurements and material of a benchmark that was not run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from laboratory.bench.material.records import ModelMaterial, Question, Scale, SceneMaterial
from laboratory.bench.measures import STAGES
from laboratory.bench.results import Run
from laboratory.bench.rounds.client import Answer, Round, Sample
from laboratory.bench.rounds.measurement import Measurement
from laboratory.bench.rounds.servers import OURS, Server
from laboratory.bench.rounds.workloads import WorkloadName

PEER = Server("litserve 16", "litserve", "batch 16", ("--threads", "1"))
OTHER_PEER = Server("fastapi", "fastapi", "lock")
TASKS = ("captioning", "object_detection", "ocr")


def question(task: str, variant: int = 0) -> Question:
    return Question(f"{task} {variant}", {"task": task}, f"prompt of {task} {variant}", 16)


def scene(index: int) -> SceneMaterial:
    """Return a scene with two captioning questions and one of every other task."""
    return SceneMaterial(Path(f"{index}.png"), (question("captioning", 1), *map(question, TASKS)))


def model(model_id: str, num_scenes: int = 8, is_endless: bool = False) -> ModelMaterial:
    """Return an embedded model, or one of base scale if its id contains "base"."""
    scale: Scale = "base" if "base" in model_id else "embedded"
    files = Path(model_id), Path(f"{model_id}.onnx")
    return ModelMaterial(model_id, scale, is_endless, *files, tuple(map(scene, range(num_scenes))))


def sample(
    latency_s: float, max_new_tokens: int = 16, num_tokens: int = 16, text: str = "a circle"
) -> Sample:
    """Return an answer of our service whose stages each took one millisecond."""
    timings_ms = dict.fromkeys(STAGES, 1.0) | {"total": len(STAGES) + 2.0}
    return Sample(max_new_tokens, latency_s, Answer(text, num_tokens, timings_ms))


def one_round(samples: Sequence[Sample], elapsed_s: float = 1.0, is_cut: bool = False) -> Round:
    return Round(len(samples), elapsed_s, tuple(samples), is_cut, cpu_s=0.5)


def measurement(
    model_id: str,
    rounds: Mapping[WorkloadName, Sequence[Round]],
    server: Server = OURS,
    precision: str = "float32",
) -> Measurement:
    listed = {workload: tuple(done) for workload, done in rounds.items()}
    return Measurement(model_id, server, 0.1, 5.0, listed, precision)


def run(*measurements: Measurement) -> Run:
    model_ids = dict.fromkeys(one.model for one in measurements)
    models = [model(model_id) for model_id in model_ids]
    return Run(models, measurements, facts={"command": "python -m laboratory.bench"})
