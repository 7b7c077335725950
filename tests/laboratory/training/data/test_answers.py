"""Training answers fit the service's parsers: true answers, written and parsed, score full
marks.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.scenes import sample_scene
from laboratory.questions import Question, TextTruth, question_prompts
from laboratory.scoring import Scorecard, score_answer
from laboratory.training.data.cell_targets import cell_targets
from laboratory.training.data.examples import make_example
from laboratory.training.data.florence2_answers import answer_pieces as florence2_pieces
from laboratory.training.data.mentions import Piece, ranked_subjects
from laboratory.training.data.paligemma_answers import PaliGemmaAnswers
from laboratory.training.data.pictures import FIRST_LINE, Picture, SpannedQuestion
from laboratory.training.data.shape_pictures import shape_picture
from laboratory.training.masks.autoencoder import MaskAutoencoder
from laboratory.training.masks.training import mask_codes
from laboratory.training.models.florence2 import make_language as florence2_language
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.paligemma import MaskDecoder
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.catalog import CATALOG
from tests.support.export_cli import MODELS

MASK_FILE = MODELS / "paligemma-mini" / "vae.npz"
SIZE_WH = (192, 192)
MIN_MASK_IOU = 0.92  # locations are on grids of 0.8 px (polygons) and 1.5 px (boxes of masks)


def shape_pictures() -> Iterator[Picture]:
    for seed in range(20):
        yield shape_picture(sample_scene(seed, 0 if seed % 10 == 0 else None))


@cache
def paligemma_answers() -> PaliGemmaAnswers:
    return PaliGemmaAnswers(partial(mask_codes, MaskAutoencoder.load_npz(MASK_FILE)))


def written(entry: CatalogEntry, picture: Picture, asked: SpannedQuestion) -> list[list[Piece]]:
    is_florence = entry.family == "florence2"
    write = florence2_pieces if is_florence else paligemma_answers().answer_pieces
    prompts = question_prompts(entry, asked.question)
    return [write(picture, asked, prompt.labels) for prompt in prompts]


def read(entry: CatalogEntry, question: Question, answers: list[list[Piece]]) -> dict[str, Any]:
    generated = []
    for pieces in answers:
        text = "".join(piece.text for piece in pieces)
        ends = (len(text),) if text else ()
        generated.append(GeneratedText(text, ends, (0.0,) * len(ends), "stop"))
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    decoder = MaskDecoder.load(MASK_FILE) if entry.family == "paligemma" else None
    result = FAMILIES[entry.family].parse_answer(
        entry, question.task, parameters, generated, SIZE_WH, "polygon", decoder
    )
    return asdict(
        result,
        dict_factory=lambda items: {k: v for k, v in items if k != "is_parsed" and v is not None},
    )


def test_true_answers_are_parsed_as_the_truth(entry: CatalogEntry) -> None:
    total = Scorecard()
    for picture in shape_pictures():
        for asked in picture.asked:
            question = asked.question
            if answers := written(entry, picture, asked):
                total += score_answer(read(entry, question, answers), question, SIZE_WH)
    assert {name for name, _ in total.tallies} >= {
        "captioning short",
        "ocr",
        "instance_segmentation phrase",
    }
    for (name, measure), tally in total.tallies.items():
        assert tally.f1 >= (MIN_MASK_IOU if measure == "mask_iou" else 1.0), (name, measure)


def test_pieces_join_to_the_true_text(entry: CatalogEntry) -> None:
    for picture in shape_pictures():
        for asked in picture.asked:
            truth = asked.question.truth
            if isinstance(truth, TextTruth) and asked.question.task != "region_description":
                for pieces in written(entry, picture, asked):
                    assert "".join(piece.text for piece in pieces) == truth.text


def asked_of(picture: Picture, name: str) -> SpannedQuestion:
    return next(asked for asked in picture.asked if asked.question.name == name)


@pytest.mark.parametrize("detail", ["short", "detailed"])
def test_each_object_of_a_caption_is_mentioned_where_it_is_named(detail: str) -> None:
    for picture in shape_pictures():
        asked = asked_of(picture, f"captioning {detail}")
        pieces = florence2_pieces(picture, asked, ())
        objects = [subject for subject in picture.parts if subject < FIRST_LINE]
        for subject in objects:
            name = picture.parts[subject].name
            named = [p.mention.subject for p in pieces if p.mention and p.text.endswith(name)]
            assert named == [subject]
        assert ranked_subjects(picture, asked, pieces)[: len(objects)] == objects


def test_characters_of_a_line_are_mentioned_one_by_one() -> None:
    picture = shape_picture(sample_scene(1, has_word=True))
    text = picture.parts[FIRST_LINE].name
    pieces = florence2_pieces(picture, asked_of(picture, "ocr"), ())
    assert [(p.text, p.mention and p.mention.character) for p in pieces] == list(
        zip(text, range(len(text)), strict=True)
    )
    assert {p.mention.subject for p in pieces if p.mention} == {FIRST_LINE}


def test_locations_are_counted_from_the_start_of_their_run(
    tokenizers: dict[str, Tokenizer],
) -> None:
    entry = CATALOG["florence-2-mini"]
    language = florence2_language(entry, tokenizers["florence-2-mini"])
    picture = shape_picture(sample_scene(1, num_objects=2, has_word=True))
    text = picture.parts[FIRST_LINE].name
    expected = {
        "ocr_with_regions": [-1] * (1 + len(text)) + [*range(8), -1],
        "region_proposal": [-1, *range(8), -1],
    }
    targets = cell_targets(picture, grid=12)
    for name, places in expected.items():
        asked = asked_of(picture, name)
        (prompt,) = question_prompts(entry, asked.question)
        example = make_example(language, picture, targets, asked, prompt.segments, prompt.labels)
        assert example.places.tolist() == places
