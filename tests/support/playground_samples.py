"""Writes the page's samples, scenes and a photograph, each with an example of every parameter.

python -m tests.support.playground_samples
"""

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from export.scenes import render_scene, sample_scene
from laboratory.questions import DetectionsTruth, Question, TextTruth, questions
from tests.support.export_cli import ROOT

FOLDER = ROOT / "service/web/playground/samples"
SIZES_WH = {
    2089: (640, 480),
    2462: (640, 480),
    2146: (600, 600),
    2187: (640, 480),
    2218: (720, 480),
}
_RENDERED_PX = 768
PHOTOGRAPH = "cat.jpg"
PHOTOGRAPH_ENTRY = {
    "id": "cat",
    "file": PHOTOGRAPH,
    "description": "A photograph of a cat's face. The embedded models know shapes only.",
    "is_photograph": True,
    "examples": {
        "labels": ["cat", "eye"],
        "caption": "a cat",
        "phrases": ["a cat"],
        "phrase": "cat",
        "region": [60, 40, 340, 280],
        "question": "what animal is this?",
    },
}


def sample_image(seed: int) -> Image.Image:
    """Return the scene of `seed` at the size of its sample."""
    return render_scene(sample_scene(seed), _RENDERED_PX).resize(SIZES_WH[seed])


def sample_entry(seed: int) -> dict[str, Any]:
    """Return the entry of a sample in the page's list."""
    asked = {
        question.name: question.scaled(SIZES_WH[seed]) for question in questions(sample_scene(seed))
    }
    described = asked["captioning detailed"].truth
    assert isinstance(described, TextTruth)
    return {
        "id": sample_id(seed),
        "file": f"{sample_id(seed)}.png",
        "description": described.text,
        "examples": _examples(asked),
    }


def sample_id(seed: int) -> str:
    """Return the word in the scene, which is its id."""
    word = sample_scene(seed).word
    assert word is not None
    return word.text.lower()


def _examples(asked: dict[str, Question]) -> dict[str, Any]:
    caption = asked["phrase_grounding caption"]
    assert isinstance(caption.truth, DetectionsTruth)
    return {
        "labels": asked["open_vocabulary_detection several"].parameters["labels"],
        **caption.parameters,
        "phrases": [box.label for box in caption.truth.boxes],
        **asked["instance_segmentation phrase"].parameters,
        "region": [
            round(float(value))
            for value in asked["region_description description"].parameters["region"]
        ],
        **asked["visual_question_answering count"].parameters,
    }


def write(folder: Path) -> None:
    """Write all samples and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in SIZES_WH:
        sample_image(seed).save(folder / f"{sample_id(seed)}.png", optimize=True)
    shutil.copyfile(ROOT / "models/photographs" / PHOTOGRAPH, folder / PHOTOGRAPH)
    entries = [*(sample_entry(seed) for seed in SIZES_WH), PHOTOGRAPH_ENTRY]
    listing = json.dumps(entries, indent=2)
    (folder / "samples.json").write_text(listing + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
