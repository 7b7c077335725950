"""Models, images and questions of the benchmark, as `python -m laboratory.bench.material` writes
them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Scale = Literal["embedded", "base"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question: fields of our API, and the exact prompt of the model."""

    name: str
    fields: dict[str, Any]
    prompt: str
    max_new_tokens: int

    @property
    def task(self) -> str:
        return str(self.fields["task"])


@dataclass(frozen=True, slots=True)
class SceneMaterial:
    """An image file and the questions about it."""

    image: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class ModelMaterial:
    """One model and its questions."""

    id: str
    scale: Scale
    is_endless: bool  # every answer has exactly `max_new_tokens` tokens
    checkpoint: Path
    encoder_graph: Path  # ONNX, for a peer
    scenes: tuple[SceneMaterial, ...]


def read_material(folder: Path) -> tuple[ModelMaterial, ...]:
    """Return the models of `folder` in their order."""
    listed = json.loads((folder / "material.json").read_text(encoding="utf-8"))["models"]
    return tuple(_model(folder, model) for model in listed)


def _model(folder: Path, model: dict[str, Any]) -> ModelMaterial:
    scenes = tuple(
        SceneMaterial(
            folder / scene["image"], tuple(Question(**question) for question in scene["questions"])
        )
        for scene in model["scenes"]
    )
    return ModelMaterial(
        id=model["id"],
        scale=model["scale"],
        is_endless=model["is_endless"],
        checkpoint=folder / model["checkpoint"],
        encoder_graph=folder / model["encoder_graph"],
        scenes=scenes,
    )
