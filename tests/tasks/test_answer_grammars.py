"""Grammars over the embedded checkpoints' vocabularies: what they allow, and what not."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from tokenizers import Tokenizer

from export import golden
from export.checkpoints.bases import CATALOG_FILE
from export.scenes import sample_scene
from laboratory.questions import question_prompts
from laboratory.training.answers import WriteAnswer, florence2_answer, paligemma_answer
from laboratory.training.pictures import picture_of
from runners.tokens.constraints import Constraints
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES
from tasks.parameters import TaskParameters, parse_parameters
from tasks.table import TASKS, Family
from tests.support.catalog import CATALOG, RELEASED
from tests.support.export_cli import EMBEDDED, MODELS
from tests.support.random_answers import random_answer
from tests.support.real_tokenizers import EOS_ID

WRITERS: dict[Family, WriteAnswer] = {
    "florence2": florence2_answer,
    "paligemma": partial(paligemma_answer, lambda _: range(16)),
}
BOX = "<loc_1><loc_2><loc_3><loc_4>"
QUAD = "<loc_1>" * 8
FOUR = "<loc0001><loc0002><loc0003><loc0004>"
SIXTEEN = "<seg001>" * 16
ASKED = TaskParameters(labels=("red circle", "star"))
ODD = TaskParameters(labels=('a "b" \\ % {4}', "<loc0005>", "größe 日本 🙂", "red", "red circle"))
PHRASE = TaskParameters(phrase="star")


@dataclass(frozen=True, slots=True)
class Language:
    """A model's words."""

    family: Family
    tokenizer: Tokenizer
    constraints: Constraints

    def is_well_formed(
        self,
        task_id: str,
        parameters: TaskParameters,
        text: str,
        entry: CatalogEntry | None = None,
    ) -> bool:
        """Return True if a decoder that follows the task's grammar can write `text` and end."""
        entry = entry or RELEASED[self.family]
        grammar = FAMILIES[self.family].answer_grammar(entry, task_id, parameters)
        assert grammar is not None
        constraint = self.constraints.get(grammar)
        state = constraint.start()
        token_ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        for token_id in [*token_ids, EOS_ID[self.family]]:
            if not constraint.allowed(state)[token_id >> 3] >> (token_id & 7) & 1:
                return False
            state = constraint.after(state, token_id)
        return True


def language(model_id: str) -> Language:
    file = MODELS / model_id / "tokenizer.json"
    family = CATALOG[model_id].family
    return Language(
        family, Tokenizer.from_file(str(file)), Constraints.load(file, {EOS_ID[family]})
    )


@pytest.fixture(scope="module")
def languages() -> dict[Family, Language]:
    return {each.family: each for each in map(language, EMBEDDED)}


def true_answers(family: Family, model_id: str) -> Iterator[tuple[str, TaskParameters, str]]:
    for seed in range(40):
        picture = picture_of(sample_scene(seed, None if seed % 5 else 0))
        for spanned in picture.questions:
            question = spanned.question
            parameters = parse_parameters(TASKS[question.task], question.parameters)
            if FAMILIES[family].answer_grammar(RELEASED[family], question.task, parameters) is None:
                continue
            for prompt in question_prompts(CATALOG[model_id], question):
                pieces = WRITERS[family](picture, spanned, prompt.labels)
                yield question.task, parameters, "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_every_true_answer_is_well_formed(languages: dict[Family, Language], model_id: str) -> None:
    family = CATALOG[model_id].family
    answers = list(true_answers(family, model_id))
    assert len(answers) > 80
    for task_id, parameters, text in answers:
        assert languages[family].is_well_formed(task_id, parameters, text), (task_id, text)


def test_published_answers_are_well_formed(capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(["--reach"]) == 0
    *_, total = capsys.readouterr().out.splitlines()
    assert total == "36 of 37 published answers can be written; 1 excluded"


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("num_answers", [300, pytest.param(5000, marks=pytest.mark.long)])
def test_every_answer_that_parses_whole_is_well_formed(
    languages: dict[Family, Language], family: Family, num_answers: int
) -> None:
    rng = random.Random(num_answers)
    for _ in range(num_answers):
        answer = random_answer(family, rng)
        assert answer.is_read_whole(), answer
        for text in answer.texts:
            assert languages[family].is_well_formed(answer.task_id, answer.parameters, text), answer


@pytest.mark.parametrize(
    ("family", "task_id", "parameters", "text", "expected"),
    [
        ("florence2", "object_detection", TaskParameters(), f"star{BOX}{BOX}circle{BOX}", True),
        ("florence2", "object_detection", TaskParameters(), f"star{BOX}<loc_5>", False),
        ("florence2", "object_detection", TaskParameters(), "star", False),
        ("florence2", "object_detection", TaskParameters(), BOX, False),
        ("florence2", "region_proposal", TaskParameters(), f"{BOX}{BOX}", True),
        ("florence2", "region_proposal", TaskParameters(), f"star{BOX}", False),
        (
            "florence2",
            "open_vocabulary_detection",
            ASKED,
            f"star<poly>{BOX}<loc_5><loc_6></poly>",
            True,
        ),
        ("florence2", "open_vocabulary_detection", ASKED, f"red circle{BOX}a star{BOX}{BOX}", True),
        ("florence2", "open_vocabulary_detection", ASKED, f"a blue star{BOX}", False),
        ("florence2", "open_vocabulary_detection", ASKED, f"red{BOX}", False),
        ("florence2", "open_vocabulary_detection", ASKED, "", True),
        (
            "florence2",
            "phrase_grounding",
            TaskParameters(caption="a star"),
            f"a blue star{BOX}",
            True,
        ),
        (
            "florence2",
            "phrase_grounding",
            TaskParameters(phrases=("A star",)),
            f"A star{BOX} star{BOX}",
            True,
        ),
        (
            "florence2",
            "phrase_grounding",
            TaskParameters(phrases=("A star",)),
            f"A stars{BOX}",
            False,
        ),
        *(
            ("florence2", "phrase_grounding", ODD, f"{label}{BOX}red{BOX}red circle{BOX}", True)
            for label in (ODD.labels or ())
        ),
        ("florence2", "instance_segmentation", PHRASE, f"{BOX}<loc_5><loc_6>", True),
        (
            "florence2",
            "instance_segmentation",
            PHRASE,
            f"{BOX}<loc_5><loc_6><sep>{BOX}<loc_5><loc_6>",
            True,
        ),
        ("florence2", "instance_segmentation", PHRASE, f"{BOX}<loc_5><loc_6><loc_7>", False),
        ("florence2", "instance_segmentation", PHRASE, BOX, False),
        ("florence2", "ocr_with_regions", TaskParameters(), f"AB{QUAD}", True),
        ("florence2", "ocr_with_regions", TaskParameters(), f"AB{BOX}", False),
        ("florence2", "region_description", TaskParameters(), f"a star{BOX}", True),
        ("florence2", "region_description", TaskParameters(), "a star", True),
        ("florence2", "region_description", TaskParameters(), "a star<loc_1>", False),
        ("paligemma", "open_vocabulary_detection", ASKED, f"{FOUR} star ; {FOUR} red circle", True),
        ("paligemma", "open_vocabulary_detection", ASKED, f"{FOUR} star;{FOUR}star", True),
        ("paligemma", "open_vocabulary_detection", ASKED, f"{FOUR} red", False),
        ("paligemma", "open_vocabulary_detection", ASKED, f"{FOUR} circle", False),
        ("paligemma", "open_vocabulary_detection", ASKED, f"{FOUR}<loc0005> star", False),
        ("paligemma", "open_vocabulary_detection", ASKED, "star", False),
        ("paligemma", "open_vocabulary_detection", ASKED, "", True),
        *(
            (
                "paligemma",
                "phrase_grounding",
                ODD,
                f"{FOUR} {label} ; {FOUR} red ; {FOUR} red circle",
                True,
            )
            for label in (ODD.labels or ())
            if label != "<loc0005>"
        ),
        ("paligemma", "phrase_grounding", ODD, f"{FOUR}<loc0005>", False),
        (
            "paligemma",
            "instance_segmentation",
            PHRASE,
            f"{FOUR}{SIXTEEN} star ; {FOUR}{SIXTEEN} star",
            True,
        ),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR}{SIXTEEN} a Star", True),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR}{SIXTEEN} a stars", False),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR} {SIXTEEN} star", True),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR}  {SIXTEEN} star", False),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR}{SIXTEEN}", False),
        (
            "paligemma",
            "instance_segmentation",
            TaskParameters(phrases=("star", "cat")),
            f"{FOUR} {SIXTEEN} cat ; {FOUR} {SIXTEEN} star ; {FOUR} {SIXTEEN} cat",
            True,
        ),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR}{SIXTEEN}<seg001> star", False),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR} star", False),
    ],
)
def test_what_is_well_formed(
    languages: dict[Family, Language],
    family: Family,
    task_id: str,
    parameters: TaskParameters,
    text: str,
    expected: bool,
) -> None:
    assert languages[family].is_well_formed(task_id, parameters, text) == expected


@pytest.mark.parametrize("task_id", ["captioning", "ocr", "visual_question_answering"])
def test_where_the_answer_is_text_any_will_do(task_id: str) -> None:
    assert all(
        FAMILIES[family].answer_grammar(entry, task_id, TaskParameters()) is None
        for family, entry in RELEASED.items()
    )


REFCOCO_ID = "paligemma-3b-ft-refcoco-seg-224"
REFCOCO = load_catalog(CATALOG_FILE, [REFCOCO_ID])[REFCOCO_ID]
PLATE = TaskParameters(labels=("plate",))


@pytest.mark.parametrize(
    ("family", "task_id", "parameters", "text", "expected"),
    [
        ("florence2", "open_vocabulary_detection", PLATE, f"plate ABC1234{BOX}", True),
        ("florence2", "open_vocabulary_detection", PLATE, f"{BOX}", False),
        ("florence2", "open_vocabulary_detection", PLATE, f"plate{BOX}<loc_5>", False),
        ("paligemma", "open_vocabulary_detection", PLATE, f"{FOUR} plate ABC1234", True),
        ("paligemma", "open_vocabulary_detection", PLATE, f"{FOUR} a ; {FOUR} b;{FOUR} c", True),
        ("paligemma", "open_vocabulary_detection", PLATE, f"{FOUR}", True),
        ("paligemma", "open_vocabulary_detection", PLATE, "plate", False),
        ("paligemma", "open_vocabulary_detection", PLATE, f"{FOUR}{FOUR} plate", False),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR} {SIXTEEN} crack", True),
        ("paligemma", "instance_segmentation", PHRASE, f"{FOUR} crack", False),
    ],
)
def test_labels_of_a_fine_tune_are_its_own(
    languages: dict[Family, Language],
    family: Family,
    task_id: str,
    parameters: TaskParameters,
    text: str,
    expected: bool,
) -> None:
    entry = replace(RELEASED[family], forced_names=False)
    assert languages[family].is_well_formed(task_id, parameters, text, entry) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), (f"{FOUR}{SIXTEEN}", True), (f"{FOUR}{SIXTEEN} star", False), (FOUR, False)],
)
def test_masks_of_refcoco_have_no_label(
    languages: dict[Family, Language], text: str, expected: bool
) -> None:
    language = languages["paligemma"]
    assert language.is_well_formed("instance_segmentation", PHRASE, text, REFCOCO) == expected
