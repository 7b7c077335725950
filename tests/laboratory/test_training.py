"""The training of the embedded models: answers that the service's parsers read as the truth, cells
and mentions, losses, and runs of a few steps.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from torch import nn
from transformers import AutoModelForImageTextToText

from export.scenes import CANVAS_PX, SHAPES, polygon_xy, sample_scene
from laboratory.questions import Question, question_prompts
from laboratory.scoring import Scorecard, score_answer
from laboratory.training.__main__ import make_training, write_weights
from laboratory.training.answers import (
    Mention,
    Piece,
    florence2_answer,
    paligemma_answer,
    ranked_subjects,
)
from laboratory.training.examples import (
    GRID,
    NO_TOKEN,
    NOTHING,
    NUM_SLOTS,
    Batch,
    answer_arrays,
    augmented_pixels,
    cell_targets,
)
from laboratory.training.loop import (
    RECIPES,
    Muon,
    Stage,
    Training,
    cosine_factor,
    orthogonalized,
    set_rates,
)
from laboratory.training.losses import answer_losses, attention_loss
from laboratory.training.masks import (
    Codebook,
    MaskAutoencoder,
    held_out_masks,
    mean_iou,
    sample_masks,
    shape_mask,
    train_mask_autoencoder,
)
from laboratory.training.models import make_language
from laboratory.training.pictures import (
    CHARACTERS,
    WORD,
    Picture,
    SpannedQuestion,
    picture_of,
    sample_picture,
)
from tasks.families import FAMILIES
from tasks.paligemma import MaskDecoder
from tasks.parsing import GeneratedText
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG, MASK_DECODER, MASK_DECODER_FILE
from tests.support.export_cli import EMBEDDED, MODELS

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
SIZE_WH = (CANVAS_PX, CANVAS_PX)
CELL_PX = CANVAS_PX / GRID
MIN_MASK_IOU = 0.92  # locations are on grids of 0.8 px (polygons) and 1.5 px (boxes of masks)


def pictures(num: int = 20) -> Iterator[Picture]:
    for seed in range(num):
        yield picture_of(sample_scene(seed, 0 if seed % 10 == 0 else None))


@cache
def autoencoder() -> MaskAutoencoder:
    return MaskAutoencoder.load_npz(MASK_DECODER_FILE)


def written(model_id: str, picture: Picture, spanned: SpannedQuestion) -> list[list[Piece]]:
    write = florence2_answer
    if model_id == "paligemma-mini":
        write = partial(paligemma_answer, autoencoder().shape_codes)
    prompts = question_prompts(CATALOG[model_id], spanned.question)
    return [write(picture, spanned, prompt.labels) for prompt in prompts]


def read(model_id: str, question: Question, answers: list[list[Piece]]) -> dict[str, Any]:
    generated = []
    for pieces in answers:
        text = "".join(piece.text for piece in pieces)
        ends = (len(text),) if text else ()
        generated.append(GeneratedText(text, ends, (0.0,) * len(ends), "stop"))
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    entry = CATALOG[model_id]
    result = FAMILIES[entry.family].parse_answer(
        entry, question.task, parameters, generated, SIZE_WH, "polygon", MASK_DECODER
    )
    return asdict(result, dict_factory=as_sent)


def as_sent(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if name != "is_parsed" and value is not None}


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_true_answers_are_parsed_as_the_truth(model_id: str) -> None:
    total = Scorecard()
    for picture in pictures():
        for spanned in picture.questions:
            if answers := written(model_id, picture, spanned):
                result = read(model_id, spanned.question, answers)
                total += score_answer(result, spanned.question, SIZE_WH)
    names = {name for name, _ in total.tallies}
    assert names >= {"captioning short", "ocr", "instance_segmentation phrase"}
    for (name, measure), tally in total.tallies.items():
        assert tally.f1 >= (MIN_MASK_IOU if measure == "mask_iou" else 1.0), (name, measure)


def question_of(picture: Picture, name: str) -> SpannedQuestion:
    return next(spanned for spanned in picture.questions if spanned.question.name == name)


@pytest.mark.parametrize("detail", ["short", "detailed"])
def test_captions_mention_each_object_where_it_is_named(detail: str) -> None:
    for picture in pictures():
        spanned = question_of(picture, f"captioning {detail}")
        pieces = florence2_answer(picture, spanned, ())
        objects = [subject for subject in picture.parts if subject != WORD]
        for subject in objects:
            name = picture.parts[subject].name
            subjects = [p.mention.subject for p in pieces if p.mention and p.text.endswith(name)]
            assert subjects == [subject]
        assert ranked_subjects(spanned, pieces)[: len(objects)] == objects
        for piece, span in zip(pieces, spanned.spans, strict=False):
            if len(span.subjects) > 1:  # a count mentions the last of its objects
                assert piece == Piece(span.text, Mention(span.subjects[-1]))


def test_characters_and_places_of_locations() -> None:
    picture = picture_of(sample_scene(1, num_objects=2, has_word=True))
    text = picture.parts[WORD].name
    pieces = florence2_answer(picture, question_of(picture, "ocr"), ())
    mentions = [(piece.text, piece.mention) for piece in pieces]
    assert mentions == [(text[i], Mention(WORD, character=i)) for i in range(len(text))]
    entry = CATALOG["florence-2-mini"]
    language = make_language(entry, MODELS / entry.id, autoencoder().shape_codes)
    targets = cell_targets(picture)
    expected = {
        "ocr_with_regions": [-1] * (1 + len(text)) + [*range(8), -1],
        "region_proposal": [-1, *range(8), -1],
    }
    for name, places in expected.items():
        arrays = answer_arrays(language, picture, targets, question_of(picture, name), ())
        assert arrays["places"].tolist() == places
        assert len(arrays["answer_ids"]) == len(places)


def test_parts_have_cells_in_their_boxes() -> None:
    for picture in pictures(60):
        targets = cell_targets(picture)
        assert (targets.arrays["characters"] != NOTHING).any() == (WORD in picture.parts)
        for subject, part in picture.parts.items():
            cells = np.flatnonzero(targets.mentioned(Mention(subject)))
            assert len(cells)
            left, top, right, bottom = part.box_xyxy
            columns = cells % GRID
            rows = cells // GRID
            assert left // CELL_PX <= columns.min() <= columns.max() <= right // CELL_PX
            assert top // CELL_PX <= rows.min() <= rows.max() <= bottom // CELL_PX
            for index in range(len(part.characters)):
                assert targets.mentioned(Mention(WORD, character=index)).any()
    assert not targets.mentioned(Mention(9, point_xy=(5.0, 5.0))).any()


def test_slots_read_left_to_right() -> None:
    for seed in range(50):
        picture = picture_of(sample_scene(seed, has_word=True))
        arrays = cell_targets(picture).arrays
        row = np.flatnonzero(arrays["subject"] == WORD)[0] // GRID
        slots = arrays["characters"].reshape(GRID, GRID * NUM_SLOTS)[row]
        indices = arrays["indices"].reshape(GRID, GRID * NUM_SLOTS)[row]
        assert (np.diff(indices[indices != NOTHING]) >= 0).all()
        for index, character in zip(indices, slots, strict=True):
            if index != NOTHING:
                assert CHARACTERS[character] == picture.parts[WORD].name[index]


def test_a_point_is_mentioned_by_its_nearest_cell() -> None:
    for seed in range(10):
        picture = picture_of(sample_scene(seed, num_objects=2))
        targets = cell_targets(picture)
        for subject, drawn in enumerate(picture.scene.objects):
            cells = np.flatnonzero(targets.mentioned(Mention(subject)))
            centres = (np.stack([cells % GRID, cells // GRID], axis=1) + 0.5) * CELL_PX
            for point in polygon_xy(drawn):
                (cell,) = np.flatnonzero(targets.mentioned(Mention(subject, point_xy=point)))
                distances = np.hypot(*(centres - point).T)
                assert cell == cells[distances.argmin()]


def test_images_are_augmented_by_the_step_only() -> None:
    picture = sample_picture(3)
    images = [augmented_pixels(picture, default_rng(seed)) for seed in (0, 0, 1)]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()
    counts = [len(sample_picture(seed, difficulty=0.0).scene.objects) for seed in range(50)]
    assert max(counts) == 2


LOCATION_IDS = torch.arange(10, 30)  # 20 bins
HEAD = torch.eye(40)  # states are logits
NUM_CELLS = 4


def batch(answer_ids: list[int], positions: list[float], steps: list[int]) -> Batch:
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
    return answer_losses(logits, HEAD, one, LOCATION_IDS, sigma)["location"]


def test_a_right_answer_has_no_loss() -> None:
    logits = torch.full((1, 3, 40), -100.0)
    logits[0, range(3), [3, 18, 5]] = 100.0
    padded = batch([3, 18, NO_TOKEN], [0.0, 8.0, 0.0], [0, 8, 0])
    losses = answer_losses(logits, HEAD, padded, LOCATION_IDS, sigma=0.05)
    assert max(losses.values()) < 1e-4


def test_locations_have_soft_targets_on_their_grid() -> None:
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


def test_muon_orthogonalizes_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 16), (2, 32, 8), (2, 8, 32)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape, generator=generator)))
        assert 0.5 < values.min() < values.max() < 1.5
    layer = nn.Linear(8, 8, bias=False)
    target = torch.randn(8, 8, generator=generator)
    muon = Muon([{"params": [layer.weight]}])
    for step in range(200):
        muon.param_groups[0]["lr"] = 0.1 * cosine_factor(step / 200, 0.0, 0.0)
        loss = (layer.weight - target).square().mean()
        torch.autograd.backward(loss)
        muon.step()
        muon.zero_grad()
    assert loss < 0.01


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    """The file of an autoencoder with random weights."""
    torch.manual_seed(0)
    random = MaskAutoencoder()
    random.codebook.fit(torch.randn(200, 512))
    random.save_npz(tmp_path / "vae.npz")
    return tmp_path / "vae.npz"


def test_the_file_is_read_by_the_served_decoder(random_file: Path) -> None:
    with np.load(random_file) as file, np.load(MASK_DECODER_FILE) as committed:
        assert {name: file[name].shape for name in file} == {
            name: committed[name].shape for name in committed
        }
        assert {str(file[name].dtype) for name in file} == {"float16"}
    codes = torch.randint(0, 128, (5, 16), generator=torch.Generator().manual_seed(3))
    fields = MaskAutoencoder.load_npz(random_file).decode(codes)
    decoder = MaskDecoder.load(random_file)
    for field, of_mask in zip(fields, codes.tolist(), strict=True):
        # the same half-precision weights; float32 sums in another order
        np.testing.assert_allclose(decoder.decode(of_mask), field.numpy(), atol=1e-3, rtol=0)


def test_codebook_rows_follow_their_features() -> None:
    codebook = Codebook()
    codebook.fit(torch.randn(200, 512))
    before = codebook.rows(torch.arange(128)).clone()
    features = torch.full((6, 512), 5.0) + torch.tensor([-1.0, 0, 1, -1, 0, 1])[:, None]
    for _ in range(200):
        codebook.follow(features, torch.full((6,), 7))
        codebook.follow(before[8:], torch.arange(8, 128))
    np.testing.assert_allclose(codebook.rows(torch.tensor(7)), 5.0, atol=1e-3)
    unused = torch.randn(40, 512)
    codebook.restart(unused, min_cluster_size=0.3)
    np.testing.assert_allclose(codebook.rows(torch.arange(8, 128)), before[8:], atol=1e-4)
    assert torch.equal(codebook.rows(torch.arange(7)), unused[:7])


def test_masks_fill_their_boxes() -> None:
    masks = sample_masks(default_rng(5), 50)
    assert masks.shape == (50, 1, 64, 64)
    assert (masks.min(), masks.max()) == (0, 1)
    for axis in (2, 3):
        is_covered = masks.max(axis) > 0
        assert is_covered[..., 0].all()
        assert is_covered[..., -1].all()
    assert np.array_equal(masks, sample_masks(default_rng(5), 50))


def test_the_committed_autoencoder_reconstructs_masks() -> None:
    assert mean_iou(autoencoder(), held_out_masks()) >= 0.9
    for shape in SHAPES:
        mask = torch.from_numpy(shape_mask(shape))[None, None]
        assert mean_iou(autoencoder(), mask) >= 0.97


def test_an_autoencoder_is_trained(tmp_path: Path) -> None:
    few = train_mask_autoencoder(tmp_path / "vae.npz", num_steps=14)
    assert 0 < few < 1
    assert MaskDecoder.load(tmp_path / "vae.npz").decode([0] * 16).shape == (64, 64)


def small_training(model_id: str, folder: Path) -> Training:
    training = make_training(model_id, folder, "cpu", seed=0)
    _, joint, refining = training.recipe
    stages = (Stage(1), dataclasses.replace(joint, num_steps=2))
    training.recipe = (*stages, dataclasses.replace(refining, num_steps=1))
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = training.trainee.model.state_dict()
    return state


def test_stages_follow_each_other() -> None:
    training = make_training("florence-2-mini", Path("unused"), "cpu", seed=0)
    places = [training.stage_of(step) for step in (0, 900, 1800, 4000, 6200, 9799, 9800)]
    assert [index for index, _ in places] == [0, 0, 1, 1, 2, 2, 2]
    assert [progress for _, progress in places][:5] == [0, 0.5, 0, 0.5, 0]
    assert all(recipe[0].weights is None for recipe in RECIPES.values())


def test_refining_starts_after_the_joint_stage(tmp_path: Path) -> None:
    training = make_training("florence-2-mini", tmp_path, "cpu", seed=0)
    training.refine(weights(training))
    optimizers = training._make_optimizers()
    assert training._restore(optimizers) == 6200
    set_rates(optimizers, 0.5, vision_factor=0.2)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            factor = 0.1 if group.get("part") == "vision" else 0.5
            assert group["lr"] == pytest.approx(factor * group["top"])


@pytest.mark.long
@pytest.mark.parametrize("model_id", EMBEDDED)
def test_a_resumed_run_equals_an_uninterrupted_one(model_id: str, tmp_path: Path) -> None:
    whole = small_training(model_id, tmp_path / "whole")
    whole.run()
    small_training(model_id, tmp_path / "stopped").run(last_step=2)
    resumed = small_training(model_id, tmp_path / "stopped")
    resumed.run()
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], expected, rtol=0, atol=0)
    write_weights(resumed, tmp_path / "checkpoint")
    model, loading = _Model.from_pretrained(
        tmp_path / "checkpoint", output_loading_info=True, dtype=torch.float32
    )
    assert not loading["missing_keys"]
    refined = small_training(model_id, tmp_path / "refined")
    refined.refine(model.state_dict())
    refined.run()
    before = model.state_dict()
    assert any(value.ne(before[name]).any() for name, value in weights(refined).items())
