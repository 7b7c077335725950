"""The training of the embedded models: answers that the service's parsers read as the truth, cells
and mentions, losses, and runs of a few steps.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from diptych_client import ImageSize
from diptych_client.results import Result
from diptych_client.transports.messages import from_json
from export.scenes import CANVAS_PX, polygon_xy, sample_scene
from laboratory.evaluation import Scorecard, score_answer
from laboratory.questions import Question, question_prompts
from laboratory.training import answers, examples, loop
from laboratory.training.answers import WORD, Mention, Picture, picture_of
from laboratory.training.examples import GRID, CellTargets
from laboratory.training.loop import make_training
from laboratory.training.losses import answer_losses, attention_loss
from service.schema.rendering import RESULT
from tasks.families import FAMILIES
from tasks.parsing import GeneratedText
from tasks.table import TASKS, Family, parse_parameters
from tests.support.catalog import CATALOG, FLORENCE, MASK_DECODER
from tests.support.export_cli import EMBEDDED, MODELS

SIZE_WH = (CANVAS_PX, CANVAS_PX)
CELL_PX = CANVAS_PX / GRID
MIN_MASK_IOU = 0.92  # locations are on grids of 0.8 px (polygons) and 1.5 px (boxes of masks)
WRITERS: dict[Family, Any] = {
    "florence2": answers.florence2_answer,
    "paligemma": answers.paligemma_answer,
}


def pictures(num: int = 20) -> Iterator[Picture]:
    for seed in range(num):
        yield picture_of(sample_scene(seed, 0 if seed % 10 == 0 else None))


def parsed(model_id: str, picture: Picture, question: Question) -> Result | None:
    """Return the true answer as the service parses it; None for a question that is not asked."""
    entry = CATALOG[model_id]
    generated = []
    for prompt in question_prompts(entry, question):
        pieces = WRITERS[entry.family](picture, question, prompt.labels)
        text = "".join(piece.text for piece in pieces)
        ends = (len(text),) if text else ()
        generated.append(GeneratedText(text, ends, (0.0,) * len(ends), "stop"))
    if not generated:
        return None
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    result = FAMILIES[entry.family].parse_answer(
        entry, question.task, parameters, generated, SIZE_WH, "polygon", MASK_DECODER
    )
    sent = RESULT.dump_python(RESULT.validate_python(result), mode="json")
    return from_json(cast("type[Result]", Result), sent)


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_true_answers_are_parsed_as_the_truth(model_id: str) -> None:
    total = Scorecard()
    for picture in pictures():
        for question in picture.questions:
            if result := parsed(model_id, picture, question):
                total.add(question.name, score_answer(result, question, ImageSize(*SIZE_WH)))
    names = {name for name, _ in total.tallies}
    assert names >= {"captioning short", "ocr", "instance_segmentation phrase"}
    for (name, measure), tally in total.tallies.items():
        assert tally.f1 >= (MIN_MASK_IOU if measure == "mask_iou" else 1.0), (name, measure)


def question_of(picture: Picture, name: str) -> Question:
    return next(question for question in picture.questions if question.name == name)


@pytest.mark.parametrize("detail", ["short", "detailed"])
def test_captions_mention_each_object_where_it_is_named(detail: str) -> None:
    for picture in pictures():
        question = question_of(picture, f"captioning {detail}")
        pieces = answers.florence2_answer(picture, question, ())
        objects = list(range(len(picture.scene.objects)))
        for subject in objects:
            name = picture.scene.objects[subject].name
            (mention,) = (piece.mention for piece in pieces if piece.text.endswith(name))
            assert mention == Mention((subject,))
        assert answers.ranked_subjects(pieces)[: len(objects)] == objects
    picture = picture_of(sample_scene(1, num_objects=3))
    question = question_of(picture, "visual_question_answering count")
    (piece,) = answers.florence2_answer(picture, question, ())
    assert (piece.text, piece.mention) == ("3", Mention((0, 1, 2)))


def test_tokens_have_the_mentions_of_their_characters() -> None:
    picture = picture_of(sample_scene(1, num_objects=2, has_word=True))
    targets = CellTargets.of(picture)
    language = examples.Language.of(FLORENCE, MODELS / FLORENCE.id)
    question = question_of(picture, "ocr_with_regions")
    arrays = examples.answer_arrays(language, targets, question, ())
    num = len(picture.text)
    assert arrays["steps"].tolist() == [0] * (1 + num) + [8] * 8 + [0]
    assert arrays["coordinates"].tolist() == [-1] * (1 + num) + [0, 1, 2, 1, 2, 3, 0, 3, -1]
    for index in range(num):
        cells = targets.mentioned(Mention((WORD,), character=index))
        assert np.array_equal(arrays["mentioned"][1 + index], cells)
    assert not arrays["mentioned"][[0, -1]].any()
    detections = examples.answer_arrays(
        language, targets, question_of(picture, "region_proposal"), ()
    )
    assert set(detections["ranks"].tolist()) == {0, 1, 2}


def test_subjects_have_cells_in_their_boxes() -> None:
    for picture in pictures(60):
        targets = CellTargets.of(picture)
        assert (targets.arrays["characters"] != examples.NOTHING).any() == (WORD in picture.boxes)
        for subject, (left, top, right, bottom) in picture.boxes.items():
            cells = np.flatnonzero(targets.mentioned(Mention((subject,))))
            assert len(cells)
            columns = cells % GRID
            rows = cells // GRID
            assert left // CELL_PX <= columns.min() <= columns.max() <= right // CELL_PX
            assert top // CELL_PX <= rows.min() <= rows.max() <= bottom // CELL_PX
        for index in range(len(picture.text)):
            assert targets.mentioned(Mention((WORD,), character=index)).any()
    assert not targets.mentioned(Mention((9,), point_xy=(5.0, 5.0))).any()


def test_a_point_is_mentioned_by_its_nearest_cell() -> None:
    picture = picture_of(sample_scene(0, num_objects=2))
    targets = CellTargets.of(picture)
    for subject, drawn in enumerate(picture.scene.objects):
        cells = np.flatnonzero(targets.mentioned(Mention((subject,))))
        centres = (np.stack([cells % GRID, cells // GRID], axis=1) + 0.5) * CELL_PX
        for point in polygon_xy(drawn):
            (cell,) = np.flatnonzero(targets.mentioned(Mention((subject,), point_xy=point)))
            assert cell == cells[np.hypot(*(centres - point).T).argmin()]


def test_images_are_augmented_by_the_step_only() -> None:
    picture = answers.sample_picture(3)
    images = [examples.augmented_pixels(picture, default_rng(seed)) for seed in (0, 0, 1)]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()
    counts = [len(answers.sample_picture(seed, difficulty=0.0).scene.objects) for seed in range(50)]
    assert max(counts) == 2


LOCATION_IDS = torch.arange(10, 30)  # 20 bins
NUM_CELLS = 4


def batch(answer_ids: list[int], positions: list[float], steps: list[int]) -> examples.Batch:
    return {
        "answer_ids": torch.tensor([answer_ids]),
        "mentioned": torch.zeros(1, len(answer_ids), NUM_CELLS, dtype=torch.bool),
        "coordinates": torch.full((1, len(answer_ids)), -1),
        "positions": torch.tensor([positions]),
        "steps": torch.tensor([steps]),
    }


def location_loss(written_id: int, position: float, sigma: float, step: int = 8) -> torch.Tensor:
    logits = torch.full((1, 1, 40), -100.0)
    logits[0, 0, written_id] = 100.0
    one = batch([written_id], [position], [step])
    return answer_losses(logits, one, LOCATION_IDS, sigma)["location"]


def test_locations_have_soft_targets_on_their_grid() -> None:
    logits = torch.full((1, 3, 40), -100.0)
    logits[0, range(3), [3, 18, 5]] = 100.0
    padded = batch([3, 18, examples.NO_TOKEN], [0.0, 8.0, 0.0], [0, 8, 0])
    assert max(answer_losses(logits, padded, LOCATION_IDS, sigma=0.05).values()) < 1e-4
    torch.testing.assert_close(location_loss(18, 12.0, 0.3), location_loss(26, 12.0, 0.3))
    assert location_loss(22, 12.0, 0.3) > location_loss(18, 12.0, 0.3)  # beside the grid
    assert torch.isfinite(location_loss(10, 0.0, 2.0))  # at the edge
    assert location_loss(29, 16.0, 2.0, step=4) > 199  # no target beyond the last bin


def test_attention_to_mentioned_cells_has_no_loss() -> None:
    one = batch([3], [0.0], [0])
    attention = torch.zeros(1, 1, 2, NUM_CELLS)
    attention[0, 0, 1, 1] = 1.0
    assert attention_loss([attention], one) == 0  # nothing is mentioned
    one["mentioned"][0, 0, 1] = True
    assert attention_loss([attention], one) == 0  # one head is enough
    one["coordinates"][0, 0] = 0  # the last layer counts coordinate 0 by head 0
    assert attention_loss([attention], one) > 10
    assert attention_loss([attention, attention.flip(2)], one) == 0


def test_stages_follow_each_other() -> None:
    training = make_training("florence-2-mini", "cpu", seed=0)
    places = [training.stage_of(step) for step in (0, 900, 1800, 4000, 6200, 9799, 9800)]
    assert [index for index, _ in places] == [0, 0, 1, 1, 2, 2, 2]
    assert [progress for _, progress in places][:5] == [0, 0.5, 0, 0.5, 0]
    optimizers = training._make_optimizers()
    loop.set_rates(optimizers, 0.5, vision_factor=0.2)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            factor = 0.1 if group.get("part") == "vision" else 0.5
            assert group["lr"] == pytest.approx(factor * group["top"])


@pytest.mark.long
@pytest.mark.parametrize("model_id", EMBEDDED)
def test_run_changes_every_part(model_id: str) -> None:
    weights = [make_training(model_id, "cpu", seed=0).trainee.model.state_dict()]
    for _ in range(2):
        training = make_training(model_id, "cpu", seed=0)
        _, joint, refining = training.recipe
        stages = (replace(joint, num_steps=1), replace(refining, num_steps=1))
        training.recipe = (loop.Stage(1), *stages)
        training.run()
        weights.append(training.trainee.model.state_dict())
    before, after, again = weights
    for name, values in after.items():
        torch.testing.assert_close(again[name], values, rtol=0, atol=0)
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        changed = [name for name in after if part in name and after[name].ne(before[name]).any()]
        assert changed, part
