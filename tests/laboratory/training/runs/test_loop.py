import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import default_rng
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor

from laboratory.training.__main__ import make_training
from laboratory.training.data.batches import NO_TOKEN, sequence_batch
from laboratory.training.data.cell_targets import cell_targets
from laboratory.training.data.shape_pictures import Kind, sample_pictures
from laboratory.training.runs.loop import Training
from laboratory.training.runs.recipes import StageName
from laboratory.training.runs.results import draw_learning_curve, read_weights, write_checkpoint
from tests.support.export_cli import MODELS

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor


def small_training(model_id: str, folder: Path) -> Training:
    """A run of one encoder and three joint steps with two images each, saved every second step."""
    training = make_training(model_id, folder, "cpu", seed=0)
    training.recipe = dataclasses.replace(
        training.recipe,
        encoder_steps=1,
        encoder_images=2,
        joint_steps=3,
        joint_images=2,
        refining_steps=0,
        saved_every=2,
        validation_every=1000,
    )
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = training.parts.trainee.model.state_dict()
    return state


@pytest.mark.long
def test_resumed_run_equals_an_uninterrupted_one(model_id: str, tmp_path: Path) -> None:
    whole = small_training(model_id, tmp_path / "whole")
    whole.run()
    stopped = small_training(model_id, tmp_path / "stopped")
    stopped.run(last_step=2)
    resumed = small_training(model_id, tmp_path / "stopped")
    resumed.run()
    assert resumed.step == whole.step == 4
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], expected, rtol=0, atol=0)


def test_checkpoint_loads_in_transformers(model_id: str, tmp_path: Path) -> None:
    training = small_training(model_id, tmp_path / "run")
    write_checkpoint(training.parts.trainee, tmp_path / "checkpoint")
    processor = _Processor.from_pretrained(tmp_path / "checkpoint")
    model, loading = _Model.from_pretrained(
        tmp_path / "checkpoint", output_loading_info=True, dtype=torch.float32
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert processor.tokenizer.image_token == "<image>"
    for name, trained in weights(training).items():
        torch.testing.assert_close(model.state_dict()[name], trained.half().float(), rtol=0, atol=0)


def test_the_learning_curve_is_drawn_from_the_log(tmp_path: Path) -> None:
    training = small_training("florence-2-mini", tmp_path / "run")
    for step in (10, 20):
        training.folder.log({"step": step, "loss": 3.0 / step})
    training.folder.log({"step": 20, "ocr: exact": 0.5})
    draw_learning_curve(training.folder, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ] == [
        10,
        20,
        20,
    ]


@pytest.mark.parametrize(("stage", "first_step"), [("encoder", 0), ("joint", 1), ("refining", 4)])
def test_a_stage_begins_at_its_first_step(
    stage: StageName, first_step: int, tmp_path: Path
) -> None:
    training = small_training("florence-2-mini", tmp_path)
    training.begin(stage, weights(training))
    assert training.folder.restore([]) == first_step


@pytest.mark.long
def test_refining_starts_with_the_weights_of_a_checkpoint(model_id: str, tmp_path: Path) -> None:
    training = small_training(model_id, tmp_path / "first")
    write_checkpoint(training.parts.trainee, tmp_path / "checkpoint")
    refined = small_training(model_id, tmp_path / "refined")
    refined.recipe = dataclasses.replace(
        refined.recipe, refining_steps=2, refining_weights={"ocr": 1.0}
    )
    stored = read_weights(tmp_path / "checkpoint")
    refined.begin("refining", stored)
    assert refined.folder.restore([refined.parts.trainee.model]) == 4
    for name, value in weights(refined).items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)
    refined.run()
    assert refined.step == 6
    assert any(not torch.equal(value, stored[name]) for name, value in weights(refined).items())


@torch.no_grad()
def test_answers_written_in_groups_equal_those_of_one_batch(model_id: str, tmp_path: Path) -> None:
    parts = make_training(model_id, tmp_path, "cpu", seed=0).parts
    trainee = parts.trainee
    pictures = sample_pictures(0, 2, Kind())
    targets = [cell_targets(picture, trainee.size.grid) for picture in pictures]
    batch = sequence_batch(parts.language, pictures, targets, {}, 4, default_rng(0))
    side_px = trainee.size.image_px
    features = trainee.image_features(torch.zeros(2, side_px, side_px, 3, dtype=torch.uint8))
    whole = trainee.write(features[batch.image_index], batch)
    grouped = trainee.write_by_length(features, batch)
    is_token = batch.answer_ids != NO_TOKEN
    expected = [whole.states, whole.writer_states, *whole.attentions]
    found = [grouped.states, grouped.writer_states, *grouped.attentions]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[is_token], theirs[is_token], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grouped.cell_states, whole.cell_states, rtol=1e-3, atol=1e-4)
    num_padded = [group.answer_ids.numel() for group in batch.groups(4)]
    assert sum(num_padded) < batch.answer_ids.numel()


def test_a_run_keeps_its_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(MODELS / "florence-2-mini" / "tokenizer.json"))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    training = make_training("florence-2-mini", tmp_path, "cpu", seed=0)
    assert "zebra" in training.parts.language.tokenizer.get_vocab()
