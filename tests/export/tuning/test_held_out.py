"""F1 of answers about held-out images, parsed as the service parses them."""

from pathlib import Path

import numpy as np
import pytest

from export.checks.reference import Reference
from export.tuning.batches import Batches
from export.tuning.examples import Example
from export.tuning.held_out import HeldOut, count, pooled
from tasks.prompts import PromptSegment
from tasks.table import Family, TaskParameters
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA
from tests.support.export_cli import MODELS
from tests.support.scene_images import scene_image

BOX = "<loc_100><loc_100><loc_500><loc_500>"
NEAR = "<loc_110><loc_100><loc_500><loc_500>"
FAR = "<loc_600><loc_600><loc_900><loc_900>"


def example(answer: str, parameters: TaskParameters | None = None) -> Example:
    prompt = (PromptSegment("?"),)
    answered = (PromptSegment(answer),)
    return Example(Path("a.png"), prompt, answered, parameters or TaskParameters(), (200, 100))


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (f"cat{NEAR}", (1, 2)),
        (f"dog{BOX}", (0, 2)),
        (f"cat{FAR}", (0, 2)),
        (f"cat{BOX}cat{BOX}", (1, 3)),
        ("", (0, 1)),
        ("<loc_5>", (0, 1)),
    ],
)
def test_a_box_is_right_by_label_and_iou(got: str, expected: tuple[int, int]) -> None:
    true = example(f"cat{BOX}")
    assert count(FLORENCE, "object_detection", true, got) == expected


def test_a_prompt_about_one_name_is_parsed_with_this_name() -> None:
    true = example("<loc0100><loc0100><loc0500><loc0500> cat", TaskParameters(labels=("cat",)))
    task = "open_vocabulary_detection"
    assert count(PALIGEMMA, task, true, true.answer[0].text) == (1, 2)


def test_a_text_is_scored_by_its_words() -> None:
    true = example("a red star")
    assert count(PALIGEMMA, "captioning", true, "a blue star star") == (2, 7)


def test_f1_is_pooled_and_its_interval_is_over_images() -> None:
    alike = pooled(np.array([(1, 4)] * 20), [])
    assert (alike.f1, alike.low, alike.high) == (0.5, 0.5, 0.5)
    mixed = pooled(np.array([(1, 2), (0, 2)] * 10), [])
    assert mixed.f1 == 0.5
    assert 0.2 < mixed.low < 0.4 < 0.6 < mixed.high < 0.8
    assert pooled(np.array([(0, 0)]), []).f1 == 1.0


PROMPTS: dict[Family, tuple[str, str]] = {
    "florence2": ("What does the image describe? Please.", "What does the image describe?"),
    "paligemma": ("caption en please", "caption en"),
}


def test_the_model_answers_held_out_prompts_as_it_does_the_processors_own_inputs(
    model_id: str, tmp_path: Path
) -> None:
    reference = Reference.load(MODELS / model_id)
    model = reference.model
    family: Family = model.config.model_type
    held_out = []
    expected = []
    for seed, text in enumerate(PROMPTS[family]):
        image = scene_image(seed, (192, 192))
        image.save(path := tmp_path / f"{seed}.png")
        answer = (PromptSegment("a star " * 20),)
        held_out.append(Example(path, (PromptSegment(text),), answer, TaskParameters(), image.size))
        prompt = reference.prompt_text(text)
        inputs = reference.processor(images=image, text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=80, num_beams=1, do_sample=False)[0]
        own = ids if model.config.is_encoder_decoder else ids[inputs["input_ids"].shape[1] :]
        decoded = reference.processor.tokenizer.decode(own, skip_special_tokens=True)
        expected.append(decoded)
    batches = Batches(model, reference.processor, MODELS / model_id)
    score = HeldOut(CATALOG[model_id], "captioning", batches, held_out).score(batch_size=8)
    assert [each.prompt for each in score.samples] == list(PROMPTS[family])
    assert [each.answer for each in score.samples] == expected
    assert all(expected)
    assert score.num_images == len(held_out)
