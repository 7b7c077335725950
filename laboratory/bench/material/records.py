"""The records of material.json: models, images and questions of the benchmark."""

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
    models = []
    for model in json.loads((folder / "material.json").read_text(encoding="utf-8"))["models"]:
        scenes = []
        for scene in model["scenes"]:
            questions = tuple(Question(**question) for question in scene["questions"])
            scenes.append(SceneMaterial(folder / scene["image"], questions))
        read = ModelMaterial(
            id=model["id"],
            scale=model["scale"],
            is_endless=model["is_endless"],
            checkpoint=folder / model["checkpoint"],
            encoder_graph=folder / model["encoder_graph"],
            scenes=tuple(scenes),
        )
        models.append(read)
    return tuple(models)
