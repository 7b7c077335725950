"""The tensors of a batch are those of the model's own forward pass over images and prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.checks.reference import Reference
from export.errors import ExportError
from export.tuning.batches import NO_LABEL, Batches
from export.tuning.examples import Example
from imaging.files import read_image
from tasks.prompts import PromptSegment
from tasks.table import TaskParameters
from tests.support.export_cli import MODELS
from tests.support.scene_images import scene_image

PROMPTS = {"florence-2-mini": "What does the image describe?", "paligemma-mini": "caption en"}
SIZE_WH = (192, 192)
ANSWERS = ("a star", "two circles and a square")


@pytest.fixture
def reference(model_id: str) -> Reference:
    return Reference.load(MODELS / model_id)


@pytest.fixture
def batches(reference: Reference, model_id: str) -> Batches:
    return Batches(reference.model, reference.processor, MODELS / model_id)


@pytest.fixture
def examples(model_id: str, tmp_path: Path) -> list[Example]:
    prompt = (PromptSegment(PROMPTS[model_id]),)
    for seed in range(len(ANSWERS)):
        scene_image(seed, SIZE_WH).save(tmp_path / f"{seed}.png")
    return [
        Example(
            tmp_path / f"{seed}.png", prompt, (PromptSegment(answer),), TaskParameters(), SIZE_WH
        )
        for seed, answer in enumerate(ANSWERS)
    ]


@torch.no_grad()
def test_the_loss_is_that_of_the_processors_own_inputs(
    reference: Reference, batches: Batches, examples: list[Example]
) -> None:
    """Within float32's sums: the same tokens in tensors of other shapes."""
    found = reference.model(**batches.stack([batches.tokenized(each) for each in examples])).logits
    for row, example in enumerate(examples):
        image = read_image(example.image)
        (text,) = (segment.text for segment in example.prompt)
        (answer,) = (segment.text for segment in example.answer)
        if reference.model.config.is_encoder_decoder:
            inputs = reference.processor(images=image, text=text, return_tensors="pt")
            inputs["labels"] = reference.processor.tokenizer(
                f"<s>{answer}</s>", return_tensors="pt"
            )["input_ids"]
        else:
            prompt = reference.prompt_text(text)
            inputs = reference.processor(
                images=image, text=prompt, suffix=answer, return_tensors="pt"
            )
        expected = reference.model(**inputs).logits[0]
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-3, rtol=1e-3)


def test_answers_are_labels_and_everything_else_is_not(
    reference: Reference, batches: Batches, examples: list[Example]
) -> None:
    labels = batches.stack([batches.tokenized(each) for each in examples])["labels"]
    for row, answer in zip(labels.tolist(), ANSWERS, strict=True):
        ids = [each for each in row if each != NO_LABEL]
        assert reference.processor.tokenizer.decode(ids, skip_special_tokens=True) == answer
        assert ids[-1] == reference.processor.tokenizer.eos_token_id


def test_the_vision_tower_runs_once_for_an_image(
    reference: Reference, batches: Batches, examples: list[Example]
) -> None:
    num_images: list[int] = []
    tower = reference.model.model.vision_tower
    tower.register_forward_hook(lambda _module, inputs, _output: num_images.append(len(inputs[0])))
    reference.model.train()
    tokenized = [batches.tokenized(each) for each in examples]
    first = batches.stack([*tokenized, tokenized[0]])
    second = batches.stack(tokenized)
    assert num_images == [1, 1]
    assert torch.equal(first["inputs_embeds"][:1], first["inputs_embeds"][2:])
    assert torch.equal(first["inputs_embeds"][:2], second["inputs_embeds"])
    assert not tower.training


def test_a_damaged_image_is_named(batches: Batches, examples: list[Example]) -> None:
    path = examples[0].image
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ExportError, match=rf"{path.name} cannot be read: the PNG image is damaged or truncated"
    ):
        batches.stack([batches.tokenized(examples[0])])


def test_an_answer_without_room_is_refused(batches: Batches, examples: list[Example]) -> None:
    endless = replace(examples[0], answer=(PromptSegment("star " * 2000),))
    with pytest.raises(ExportError, match=r"need \d+ positions; the model has \d+"):
        batches.tokenized(endless)
