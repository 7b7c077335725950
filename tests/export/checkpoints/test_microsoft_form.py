"""Florence-2 in Microsoft's own form gives the answers of Microsoft's code."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.parity import ProbePlan
from export.checks.reference import Reference
from export.errors import SourceError
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
from export.scenes import render_scene, sample_scene
from runners.models.load import load_decoder
from tests.support.fitting_entries import fitting
from tests.support.microsoft_form import (
    NUM_ROWS,
    MicrosoftModel,
    answered,
    converted,
    update_json,
    write_microsoft_form,
)
from wire.artifacts.manifest import DECODER_FILE, verify_files

PROMPTS = ("What does the image describe?", "Locate the objects with category name in the image.")
MAX_NEW_TOKENS = 16
PADDED_ROWS = 51328


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def test_answers_are_those_of_microsofts_code(
    model: MicrosoftModel, plain: Path, tmp_path: Path
) -> None:
    reference = Reference.load(plain)
    images = [render_scene(sample_scene(seed), 768) for seed in range(2)]
    inputs = reference.processor.image_processor(images, do_resize=False, return_tensors="pt")
    features = model.image_features(inputs["pixel_values"])
    assert torch.allclose(reference.image_features(images), features, atol=1e-3)
    folder = Path(shutil.copytree(plain, tmp_path / "artifacts"))
    write_decoder_weights(CheckpointTensors.open(plain), folder / DECODER_FILE)
    decoder = load_decoder(folder, "florence2", "float32", "cpu")
    assert decoder.rules.num_beams == 3
    for text in PROMPTS:
        prompt_ids = decoder.text.prompt_ids([(text, False)])
        assert prompt_ids == reference.prompt_ids(text, images[0])
        expected = [model.generate(each, prompt_ids, MAX_NEW_TOKENS) for each in features]
        assert answered(decoder, features, prompt_ids, MAX_NEW_TOKENS) == expected
        assert len(set(map(tuple, expected))) == 2
    assert answered(decoder, features[:1], prompt_ids, 1) == [
        model.generate(features[0], prompt_ids, 1)
    ]


@pytest.mark.long
def test_pickled_checkpoint_exports_and_agrees_with_transformers(
    model: MicrosoftModel, tmp_path: Path
) -> None:
    folder = tmp_path / "microsoft"
    artifacts = tmp_path / "artifacts"
    for each in (folder, artifacts):
        each.mkdir()
    write_microsoft_form(model.weights(), folder, is_pickled=True)
    job = plan_job(find_entry("florence-2-base"), ExportOptions(source=str(folder)))
    progress = Progress("florence-2-base", NUM_STEPS, io.StringIO())
    manifest = make_artifacts(
        replace(fitting(job), photographs=()), artifacts, progress, probe_plan=ProbePlan(2, 8)
    )
    verify_files(artifacts, manifest)
    assert (manifest.source, manifest.num_image_tokens) == (str(folder), 577)
    assert manifest.parity["tokens"]["num_near_ties"] == 0


def test_new_rows_are_never_chosen(plain: Path) -> None:
    embeddings = load_file(plain / "model.safetensors")["model.language_model.shared.weight"]
    assert len(embeddings) == PADDED_ROWS
    states = torch.randn(500, embeddings.shape[1])
    for states_of_sign in (states, -states):
        assert (states_of_sign @ embeddings.float().T).argmax(-1).max() < NUM_ROWS


@pytest.mark.parametrize(
    ("file_name", "values"),
    [
        ("config.json", {"vision_config": {"image_pos_embed": "learned_abs_2d"}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}),
        ("preprocessor_config.json", {"size": [768]}),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(
    file_name: str, values: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    update_json(checkpoint / file_name, **values)
    with pytest.raises(SourceError, match=r"are not those of Microsoft's form|has size") as caught:
        converted(checkpoint, tmp_path / "converted")
    assert "\n" not in str(caught.value)
