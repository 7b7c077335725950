"""The tensors of a batch are those of the model's own forward pass over images and prompts, and F1
of answers about held-out images, parsed as the service parses them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checks.reference import Reference
from export.errors import ExportError
from export.tuning.batches import NO_LABEL, Batches
from export.tuning.examples import Example
from export.tuning.held_out import HeldOut, count, pooled
from imaging.files import read_image
from tasks.catalog import CatalogEntry
from tasks.prompts import PromptSegment
from tasks.table import TaskParameters
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA
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


def example(path: Path, prompt: str, answer: str, **parameters: tuple[str, ...]) -> Example:
    segments = (PromptSegment(prompt),), (PromptSegment(answer),)
    return Example(path, *segments, TaskParameters(**parameters), SIZE_WH)  # type: ignore[arg-type]


@pytest.fixture
def examples(model_id: str, tmp_path: Path) -> list[Example]:
    """Examples with prompts of different lengths."""
    rows = []
    for seed, (prompt, answer) in enumerate(zip(PROMPTS[model_id], ANSWERS, strict=True)):
        path = tmp_path / f"{seed}.png"
        scene_image(seed, SIZE_WH).save(path)
        rows.append(example(path, prompt, answer))
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
            prompt = reference.prompt_text(text)
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


def test_what_cannot_be_learnt_is_named(batches: Batches, examples: list[Example]) -> None:
    path = examples[0].image
    path.write_bytes(path.read_bytes()[:-100])
    message = rf"{path.name} cannot be read: the PNG image is damaged or truncated"
    with pytest.raises(ExportError, match=message):
        batches.stack([batches.tokenized(examples[0])])
    endless = replace(examples[0], answer=(PromptSegment("star " * 2000),))
    with pytest.raises(ExportError, match=r"need \d+ positions; the model has \d+"):
        batches.tokenized(endless)


def test_held_out_prompts_are_answered_as_by_the_processors_own_inputs(
    reference: Reference, batches: Batches, examples: list[Example], model_id: str
) -> None:
    model = reference.model
    expected = []
    held_out = []
    for row in examples:
        held_out.append(replace(row, answer=(PromptSegment("a star " * 20),)))
        prompt = reference.prompt_text(row.prompt[0].text)
        image = read_image(row.image)
        inputs = reference.processor(images=image, text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=80, num_beams=1, do_sample=False)[0]
        if not model.config.is_encoder_decoder:
            ids = ids[inputs["input_ids"].shape[1] :]
        expected.append(reference.processor.tokenizer.decode(ids, skip_special_tokens=True))
    score = HeldOut(CATALOG[model_id], "captioning", batches, held_out).score(batch_size=8)
    assert [sample.prompt for sample in score.samples] == list(PROMPTS[model_id])
    assert [sample.answer for sample in score.samples] == expected
    assert all(expected)
    assert score.num_images == len(held_out)


BOX = "<loc_100><loc_100><loc_500><loc_500>"
NEAR = "<loc_110><loc_100><loc_500><loc_500>"
FAR = "<loc_600><loc_600><loc_900><loc_900>"
GEMMA_CAT = "<loc0100><loc0100><loc0500><loc0500> cat"


@pytest.mark.parametrize(
    ("entry", "task", "truth", "answer", "counts"),
    [
        (FLORENCE, "object_detection", f"cat{BOX}", f"cat{NEAR}", (1, 2)),
        (FLORENCE, "object_detection", f"cat{BOX}", f"dog{BOX}", (0, 2)),
        (FLORENCE, "object_detection", f"cat{BOX}", f"cat{FAR}", (0, 2)),
        (FLORENCE, "object_detection", f"cat{BOX}", f"cat{BOX}cat{BOX}", (1, 3)),
        (FLORENCE, "object_detection", f"cat{BOX}", "", (0, 1)),
        (FLORENCE, "object_detection", f"cat{BOX}", "<loc_5>", (0, 1)),
        (PALIGEMMA, "open_vocabulary_detection", GEMMA_CAT, GEMMA_CAT, (1, 2)),
        (PALIGEMMA, "captioning", "a red star", "a blue star star", (2, 7)),
    ],
)
def test_right_boxes_and_words_are_counted(
    entry: CatalogEntry, task: str, truth: str, answer: str, counts: tuple[int, int]
) -> None:
    labels = {"labels": ("cat",)} if task.startswith("open") else {}
    true = example(Path("a.png"), "?", truth, **labels)
    assert count(entry, task, true, answer) == counts


def test_f1_is_pooled_and_its_interval_is_over_images() -> None:
    alike = pooled(np.array([(1, 4)] * 20), [])
    assert (alike.f1, alike.low, alike.high) == (0.5, 0.5, 0.5)
    mixed = pooled(np.array([(1, 2), (0, 2)] * 10), [])
    assert mixed.f1 == 0.5
    assert 0.2 < mixed.low < 0.4 < 0.6 < mixed.high < 0.8
    assert pooled(np.array([(0, 0)]), []).f1 == 1.0
