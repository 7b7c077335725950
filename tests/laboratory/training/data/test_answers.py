"""Training answers fit the service's parsers: true answers, written and parsed, score full
marks.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.scenes import Question, Scene, Scorecard, questions, sample_scene, score_answer
from export.scenes.prompts import question_prompts
from export.scenes.truth import TextTruth
from laboratory.training.data.cell_targets import cell_targets
from laboratory.training.data.examples import make_example
from laboratory.training.data.florence2_answers import answer_pieces as florence2_pieces
from laboratory.training.data.mentions import WORD, Piece, ranked_subjects
from laboratory.training.data.paligemma_answers import PaliGemmaAnswers
from laboratory.training.masks.autoencoder import MaskAutoencoder
from laboratory.training.masks.training import shape_codes
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
MIN_MASK_IOU = 0.92  # locations on grids of 0.8 px (polygons) and 1.5 px (boxes around masks)


def scenes() -> Iterator[Scene]:
    for seed in range(20):
        yield sample_scene(seed, 0 if seed % 10 == 0 else None)


@cache
def paligemma_answers() -> PaliGemmaAnswers:
    return PaliGemmaAnswers(shape_codes(MaskAutoencoder.load_npz(MASK_FILE)))


def written(entry: CatalogEntry, scene: Scene, question: Question) -> list[list[Piece]]:
    is_florence = entry.family == "florence2"
    write = florence2_pieces if is_florence else paligemma_answers().answer_pieces
    return [write(scene, question, prompt.labels) for prompt in question_prompts(entry, question)]


def read(entry: CatalogEntry, question: Question, answers: list[list[Piece]]) -> dict[str, Any]:
    generated = []
    for pieces in answers:
        text = "".join(piece.text for piece in pieces)
        ends = (len(text),) if text else ()
        generated.append(GeneratedText(text, ends, (0.0,) * len(ends), "stop"))
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    decoder = MaskDecoder.load(MASK_FILE) if entry.family == "paligemma" else None
    result = FAMILIES[entry.family].parse_answer(
        question.task, parameters, generated, SIZE_WH, "polygon", decoder
    )
    return asdict(
        result,
        dict_factory=lambda items: {k: v for k, v in items if k != "is_parsed" and v is not None},
    )


def test_true_answers_are_parsed_as_the_truth(entry: CatalogEntry) -> None:
    total = Scorecard()
    for scene in scenes():
        for question in questions(scene):
            if answers := written(entry, scene, question):
                total += score_answer(read(entry, question, answers), question, SIZE_WH)
    assert {name for name, _ in total.tallies} >= {
        "captioning short",
        "ocr",
        "instance_segmentation phrase",
    }
    for (name, measure), tally in total.tallies.items():
        assert tally.f1 >= (MIN_MASK_IOU if measure == "mask_iou" else 1.0), (name, measure)


def test_pieces_join_to_the_true_text(entry: CatalogEntry) -> None:
    for scene in scenes():
        for question in questions(scene):
            if isinstance(question.truth, TextTruth) and question.task != "region_description":
                for pieces in written(entry, scene, question):
                    assert "".join(piece.text for piece in pieces) == question.truth.text


@pytest.mark.parametrize("detail", ["short", "detailed"])
def test_each_object_of_a_caption_is_mentioned_where_it_is_named(detail: str) -> None:
    for scene in scenes():
        question = next(q for q in questions(scene) if q.name == f"captioning {detail}")
        pieces = florence2_pieces(scene, question, ())
        for index, drawn in enumerate(scene.objects):
            named = [p.mention.subject for p in pieces if p.mention and p.text.endswith(drawn.name)]
            assert named == [index]
        assert ranked_subjects(scene, question, pieces)[: len(scene.objects)] == list(
            range(len(scene.objects))
        )


def test_characters_of_the_word_are_mentioned_one_by_one() -> None:
    scene = sample_scene(1, has_word=True)
    assert scene.word is not None
    question = next(q for q in questions(scene) if q.name == "ocr")
    pieces = florence2_pieces(scene, question, ())
    assert [(p.text, p.mention and p.mention.character) for p in pieces] == list(
        zip(scene.word.text, range(len(scene.word.text)), strict=True)
    )
    assert {p.mention.subject for p in pieces if p.mention} == {WORD}


def test_locations_are_counted_from_the_start_of_their_run(
    tokenizers: dict[str, Tokenizer],
) -> None:
    entry = CATALOG["florence-2-mini"]
    language = florence2_language(entry, tokenizers["florence-2-mini"])
    scene = sample_scene(1, num_objects=2, has_word=True)
    assert scene.word is not None
    expected = {
        "ocr_with_regions": [-1] * (1 + len(scene.word.text)) + [*range(8), -1],
        "region_proposal": [-1, *range(8), -1],
    }
    for question in questions(scene):
        if question.name in expected:
            (prompt,) = question_prompts(entry, question)
            example = make_example(
                language, scene, cell_targets(scene), question, prompt.segments, prompt.labels
            )
            assert example.places.tolist() == expected[question.name]
