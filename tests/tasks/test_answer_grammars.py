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
from tasks.table import TASKS, Family, TaskParameters, parse_parameters
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
ODD_LABELS = ('a "b" \\ % {4}', "<loc0005>", "größe 日本 🙂", "red", "red circle")
ODD = TaskParameters(labels=ODD_LABELS)
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


DETECTION = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
MASKS = "instance_segmentation"
NONE = TaskParameters()
CAT_OR_STAR = TaskParameters(phrases=("star", "cat"))
TRIANGLE = f"{BOX}<loc_5><loc_6>"
MASK = f"{FOUR}{SIXTEEN}"
# family, task and parameters -> answers that are well-formed, and others
FORMS: list[tuple[Family, str, TaskParameters, list[str], list[str]]] = [
    (
        "florence2",
        "object_detection",
        NONE,
        [f"star{BOX}{BOX}circle{BOX}"],
        [f"star{BOX}<loc_5>", "star", BOX],
    ),
    ("florence2", "region_proposal", NONE, [f"{BOX}{BOX}"], [f"star{BOX}"]),
    (
        "florence2",
        DETECTION,
        ASKED,
        ["", f"star<poly>{TRIANGLE}</poly>", f"red circle{BOX}a star{BOX}{BOX}"],
        [f"a blue star{BOX}", f"red{BOX}"],
    ),
    ("florence2", GROUNDING, TaskParameters(caption="a star"), [f"a blue star{BOX}"], []),
    (
        "florence2",
        GROUNDING,
        TaskParameters(phrases=("A star",)),
        [f"A star{BOX} star{BOX}"],
        [f"A stars{BOX}"],
    ),
    (
        "florence2",
        GROUNDING,
        ODD,
        [f"{label}{BOX}red{BOX}red circle{BOX}" for label in ODD_LABELS],
        [],
    ),
    (
        "florence2",
        MASKS,
        PHRASE,
        [TRIANGLE, f"{TRIANGLE}<sep>{TRIANGLE}"],
        [f"{TRIANGLE}<loc_7>", BOX],
    ),
    ("florence2", MASKS, CAT_OR_STAR, [TRIANGLE, f"dog{TRIANGLE}"], [f"star{BOX}"]),
    ("florence2", "ocr_with_regions", NONE, [f"AB{QUAD}"], [f"AB{BOX}"]),
    ("florence2", "region_description", NONE, [f"a star{BOX}", "a star"], ["a star<loc_1>"]),
    (
        "paligemma",
        DETECTION,
        ASKED,
        ["", f"{FOUR} star ; {FOUR} red circle", f"{FOUR} star;{FOUR}star"],
        [f"{FOUR} red", f"{FOUR} circle", f"{FOUR}<loc0005> star", "star"],
    ),
    (
        "paligemma",
        GROUNDING,
        ODD,
        [
            f"{FOUR} {label} ; {FOUR} red ; {FOUR} red circle"
            for label in ODD_LABELS
            if label != "<loc0005>"
        ],
        [f"{FOUR}<loc0005>"],
    ),
    (
        "paligemma",
        MASKS,
        PHRASE,
        [f"{MASK} star ; {MASK} star", f"{MASK} a Star", f"{FOUR} {SIXTEEN} star"],
        [
            f"{MASK} a stars",
            f"{MASK}<seg001> star",
            f"{FOUR} star",
            f"{FOUR}  {SIXTEEN} star",
            MASK,
        ],
    ),
    ("paligemma", MASKS, CAT_OR_STAR, [f"{MASK} cat ; {FOUR} {SIXTEEN} star ; {MASK} cat"], []),
]


@pytest.mark.parametrize(("family", "task_id", "parameters", "well_formed", "others"), FORMS)
def test_forms_of_answers(
    languages: dict[Family, Language],
    family: Family,
    task_id: str,
    parameters: TaskParameters,
    well_formed: list[str],
    others: list[str],
) -> None:
    for text in well_formed:
        assert languages[family].is_well_formed(task_id, parameters, text), text
    for text in others:
        assert not languages[family].is_well_formed(task_id, parameters, text), text


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
