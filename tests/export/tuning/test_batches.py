"""The tensors of a batch are those of the model's own forward pass over images and prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from export.checks.reference import Reference
from export.errors import ExportError
from export.tuning.examples import Example
from export.tuning.training import NO_LABEL, Batches
from imaging.files import read_image, resize
from tasks.prompts import PromptSegment
from tests.support.export_cli import MODELS
from tests.support.scene_images import scene_image

SIZE_WH = (192, 192)
ANSWERS = ("a star", "two circles and a square")
PROMPTS = {
    "florence-2-mini": ("What does the image describe? Please.", "What does the image describe?"),
    "paligemma-mini": ("caption en please", "caption en"),
}


@pytest.fixture
def reference(model_id: str) -> Reference:
    return Reference.load(MODELS / model_id)


@pytest.fixture
def batches(reference: Reference, model_id: str) -> Batches:
    return Batches(reference.model, reference.processor, MODELS / model_id)


@pytest.fixture
def examples(model_id: str, tmp_path: Path) -> list[Example]:
    """Examples with prompts of different lengths."""
    rows = []
    for seed, (prompt, answer) in enumerate(zip(PROMPTS[model_id], ANSWERS, strict=True)):
        path = tmp_path / f"{seed}.png"
        scene_image(seed, SIZE_WH).save(path)
        segments = (PromptSegment(prompt),), (PromptSegment(answer),)
        rows.append(Example(path, *segments))
    return rows


@torch.no_grad()
def test_the_loss_is_that_of_the_processors_own_inputs(
    reference: Reference, batches: Batches, examples: list[Example]
) -> None:
    """Within float32's sums: the same tokens in tensors of other shapes."""
    batch = batches.stack([batches.tokenized(row) for row in examples])
    logits = reference.model(**batch).logits
    processor = reference.processor
    for index, row in enumerate(examples):
        image = read_image(row.image)
        text = row.prompt[0].text
        answer = row.answer[0].text
        if reference.model.config.is_encoder_decoder:
            inputs = processor(images=image, text=text, return_tensors="pt")
            labels = processor.tokenizer(f"<s>{answer}</s>", return_tensors="pt")["input_ids"]
            inputs["labels"] = labels
        else:
            prompt = f"<image>{text}"
            inputs = processor(images=image, text=prompt, suffix=answer, return_tensors="pt")
        expected = reference.model(**inputs).logits[0]
        torch.testing.assert_close(logits[index, : len(expected)], expected, atol=1e-3, rtol=1e-3)
        ids = [token_id for token_id in batch["labels"][index].tolist() if token_id != NO_LABEL]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == answer
        assert ids[-1] == processor.tokenizer.eos_token_id


def test_the_vision_tower_runs_once_for_an_image(
    reference: Reference, batches: Batches, examples: list[Example]
) -> None:
    num_images: list[int] = []
    tower = reference.model.model.vision_tower
    tower.register_forward_hook(lambda _module, inputs, _output: num_images.append(len(inputs[0])))
    reference.model.train()
    tokenized = [batches.tokenized(row) for row in examples]
    first = batches.stack([*tokenized, tokenized[0]])["inputs_embeds"]
    second = batches.stack(tokenized)["inputs_embeds"]
    assert num_images == [1, 1]
    assert torch.equal(first[:1], first[2:])
    assert torch.equal(first[:2], second)
    assert not tower.training


def test_images_are_resized_as_they_are_served(batches: Batches, examples: list[Example]) -> None:
    first, second = (row.image for row in examples)
    scene_image(0, (300, 200)).save(first)
    resize(read_image(first), SIZE_WH, Image.Resampling.BICUBIC).save(second)
    rows = batches.stack([batches.tokenized(replace(row, prompt=())) for row in examples])
    num_image = batches._num_image_tokens
    assert torch.equal(*rows["inputs_embeds"][:, :num_image])


def test_what_cannot_be_learnt_is_named(batches: Batches, examples: list[Example]) -> None:
    path = examples[0].image
    path.write_bytes(path.read_bytes()[:-100])
    message = rf"{path.name} cannot be read: the PNG image is damaged or truncated"
    with pytest.raises(ExportError, match=message):
        batches.stack([batches.tokenized(examples[0])])
    endless = replace(examples[0], answer=(PromptSegment("star " * 2000),))
    with pytest.raises(ExportError, match=r"need \d+ positions; the model has \d+"):
        batches.tokenized(endless)
