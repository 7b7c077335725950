"""Images, and questions about each in two forms: the fields of our API, and the model's exact
prompt.

Only questions with a single prompt are used, so that one request is one sequence for every server.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.scenes import render_scene
from laboratory.bench.material.models import BenchModel, checkpoint_folder, encoder_graph_file
from laboratory.bench.material.records import Question
from laboratory.evaluation import encoded, evaluation_scene
from laboratory.questions import question_prompts, questions
from tasks.catalog import CatalogEntry

NUM_SCENES = {"embedded": 400, "base": 120}
NUM_SHORT_SCENES = 200  # per model of the short run
SIZE_PX = {"embedded": 384, "base": 768}
_FREE_LENGTH = 128  # embedded checkpoints predict the end token
# Tokens that random weights generate per question: about as many as Florence-2-base for a
# photograph.
_RANDOM_LENGTHS = {
    "captioning short": 12,
    "captioning detailed": 48,
    "object_detection": 40,
    "dense_region_captioning": 64,
    "region_proposal": 40,
    "instance_segmentation phrase": 64,
    "instance_segmentation region": 64,
    "ocr": 24,
    "ocr_with_regions": 48,
}
_SHORT_LENGTH = 8  # all other questions


def model_material(
    model: BenchModel, entry: CatalogEntry, folder: Path, num_scenes: int
) -> dict[str, Any]:
    """Return the entry of a model in material.json; file names are relative to `folder`.

    Images that do not exist yet are written.
    """
    size_px = SIZE_PX[model.scale]
    images = folder / "images" / str(size_px)
    images.mkdir(parents=True, exist_ok=True)
    scenes = []
    for index in range(num_scenes):
        scene = evaluation_scene(index)
        image = images / f"{index}.png"
        if not image.exists():
            image.write_bytes(encoded(render_scene(scene, size_px)).data)
        asked = []
        for question in questions(scene):
            scaled = question.scaled((size_px, size_px))
            prompts = question_prompts(entry, scaled, (size_px, size_px))
            if len(prompts) == 1:
                text = "".join(segment.text for segment in prompts[0].segments)
                fields = {"task": question.task, **scaled.parameters}
                length = _FREE_LENGTH
                if model.is_random:
                    length = _RANDOM_LENGTHS.get(question.name, _SHORT_LENGTH)
                asked.append(asdict(Question(question.name, fields, text, length)))
        scenes.append({"image": str(image.relative_to(folder)), "questions": asked})
    return {
        "id": model.id,
        "scale": model.scale,
        "is_endless": model.is_endless,
        "checkpoint": str(checkpoint_folder(model, folder).relative_to(folder)),
        "encoder_graph": str(encoder_graph_file(model, folder).relative_to(folder)),
        "scenes": scenes,
    }
