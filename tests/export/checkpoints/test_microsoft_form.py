"""Florence-2 in Microsoft's own form gives the answers of Microsoft's code."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.artifacts.checkpoint_tensors import CheckpointTensors
from export.artifacts.decoder_weights import write_decoder_weights
from export.checkpoints.errors import SourceError
from export.checkpoints.forms import in_transformers_form
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checkpoints.sources import resolve_source
from export.checks.probes import ProbePlan
from export.checks.reference import Reference
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
from export.scenes import render_scene, sample_scene
from runners.artifacts.manifest import DECODER_FILE, verify_files
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.microsoft_form import (
    NUM_ROWS,
    RULES,
    MicrosoftModel,
    microsoft_config,
    update_json,
    write_microsoft_form,
)

PROMPTS = ("What does the image describe?", "Locate the objects with category name in the image.")
MAX_NEW_TOKENS = 16
PADDED_ROWS = 51328
LANGUAGE_WEIGHT = "language_model.model.decoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def model() -> MicrosoftModel:
    return MicrosoftModel.random()


@pytest.fixture(scope="module")
def original(model: MicrosoftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Microsoft publishes it."""
    folder = tmp_path_factory.mktemp("microsoft")
    write_microsoft_form(model.weights(), folder)
    return folder


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def converted(folder: Path, output: Path) -> Path:
    """Return a copy of the folder that the export reads."""
    source = resolve_source(str(folder), None, "florence2", Path())
    with in_transformers_form(source) as same:
        assert (same.name, same.revision) == (source.name, None)
        return Path(shutil.copytree(same.folder, output))


@pytest.fixture(scope="module")
def plain(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(original, tmp_path_factory.mktemp("converted") / "plain")


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
        prompt_ids = decoder.prompt_ids([(text, False)])
        assert prompt_ids == reference.prompt_ids(text, images[0])
        expected = [model.generate(each, prompt_ids, MAX_NEW_TOKENS) for each in features]
        assert answered(decoder, features, prompt_ids, MAX_NEW_TOKENS) == expected
        assert len(set(map(tuple, expected))) == 2
    assert answered(decoder, features[:1], prompt_ids, 1) == [
        model.generate(features[0], prompt_ids, 1)
    ]


def answered(
    decoder: Decoder[Any], features: Tensor, prompt_ids: tuple[int, ...], max_new_tokens: int
) -> list[list[int]]:
    """Return our answers to a prompt about each image, with the checkpoint's 3 beams."""
    requests = [SequenceRequest(each, prompt_ids, max_new_tokens, num_beams=3) for each in features]
    return [list(answer.token_ids) for answer in generate_all(decoder, requests)]


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
        replace(job, photographs=()), artifacts, progress, probe_plan=ProbePlan(2, 8)
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


def vision_type(value: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        vision = microsoft_config()["vision_config"] | {"model_type": value}
        update_json(folder / "config.json", vision_config=vision)

    return change


def without_text_type(folder: Path) -> None:
    text = microsoft_config()["text_config"]
    del text["model_type"]
    update_json(folder / "config.json", text_config=text, auto_map=None)


def with_moved_rules(folder: Path) -> None:
    """Do what save_pretrained of transformers 4.50 does."""
    text = microsoft_config()["text_config"]
    for name in RULES:
        del text[name]
    update_json(folder / "config.json", text_config=text)
    update_json(folder / "generation_config.json", **RULES)


def without_rules(folder: Path) -> None:
    with_moved_rules(folder)
    (folder / "generation_config.json").unlink()


def with_ids_of_another_model(folder: Path) -> None:
    update_json(folder / "generation_config.json", bos_token_id=2, eos_token_id=1, pad_token_id=0)


def with_saved_tokens(folder: Path) -> None:
    """Do what save_pretrained of Microsoft's processor does."""
    source = resolve_source(str(folder), None, "florence2", Path())
    with in_transformers_form(source) as same:
        tokenizer = json.loads((same.folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["added_tokens"].pop()["content"] == "<image>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def with_the_head_only(folder: Path) -> None:
    """Do what safetensors does with tied weights: keep the first name."""
    weights = load_file(folder / "model.safetensors")
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        del weights[f"language_model.model.{name}.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        vision_type(""),
        vision_type(None),
        without_text_type,
        with_moved_rules,
        without_rules,
        with_ids_of_another_model,
        with_saved_tokens,
        with_the_head_only,
        pickled,
    ],
)
def test_variants_of_the_form_are_the_same_checkpoint(
    change: Callable[[Path], None], checkpoint: Path, plain: Path, tmp_path: Path
) -> None:
    change(checkpoint)
    folder = converted(checkpoint, tmp_path / "converted")
    assert {path.name for path in folder.iterdir()} == {path.name for path in plain.iterdir()}
    for path in plain.iterdir():
        if path.suffix == ".json":
            assert (folder / path.name).read_text() == path.read_text(), path.name
    weights = load_file(folder / "model.safetensors")
    expected = load_file(plain / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_float32_weights_stay_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    folder = converted(checkpoint, tmp_path / "converted")
    dtypes = {tensor.dtype for tensor in CheckpointTensors.open(folder).values()}
    assert dtypes == {torch.float32}


def read(folder: Path) -> None:
    source = resolve_source(str(folder), None, "florence2", Path())
    with in_transformers_form(source) as same:
        CheckpointTensors.open(same.folder)


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("language_model.lm_head.weight", "an adapter of lm_head was merged"),
        ("language_model.final_logits_bias", "final_logits_bias that is not zero"),
    ],
)
def test_weights_that_transformers_form_cannot_hold_are_refused(
    name: str, message: str, checkpoint: Path
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights[name] = weights[name] + 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert message in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_projection", "lacks image_projection: its configuration is Microsoft's"),
        (LANGUAGE_WEIGHT, "lacks 1 weights of its configuration, first model.language_model."),
    ],
)
def test_missing_weights_are_refused_by_name(name: str, message: str, checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert message in refusal(checkpoint)


def test_tokenizer_of_another_model_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    for name in list(weights):
        if len(weights[name]) == NUM_ROWS:
            weights[name] = weights[name][:-10].contiguous()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "has embeddings of 51279 tokens; its tokenizer has 51289" in refusal(checkpoint)


def test_features_of_another_pooling_are_refused(checkpoint: Path) -> None:
    vision = microsoft_config()["vision_config"] | {"image_feature_source": ["last_frame"]}
    update_json(checkpoint / "config.json", vision_config=vision)
    assert "vision_config.image_feature_source ['last_frame']; allowed: [" in refusal(checkpoint)
