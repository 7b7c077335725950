"""Grammars over the embedded checkpoints' vocabularies: what they allow, and what not."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from tokenizers import Tokenizer

from export.checkpoints.bases import CATALOG_FILE
from export.checks.asking import Question
from export.golden import read_golden
from runners.tokens.text import Constraints
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import RUNNER_FAMILIES
from tasks.table import Family, TaskParameters
from tests.support.catalog import CATALOG, EOS_ID, RELEASED
from tests.support.export_cli import EMBEDDED, MODELS

BOX = "<loc_1><loc_2><loc_3><loc_4>"
QUAD = "<loc_1>" * 8
FOUR = "<loc0001><loc0002><loc0003><loc0004>"
SIXTEEN = "<seg001>" * 16
NAMES = TaskParameters(labels=("red circle", "star"))
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
        self, task_id: str, parameters: TaskParameters, text: str, entry: CatalogEntry | None = None
    ) -> bool:
        """Return True if a decoder that follows the task's grammar can write `text` and end."""
        entry = entry or RELEASED[self.family]
        grammar = RUNNER_FAMILIES[self.family].answer_grammar(entry, task_id, parameters)
        assert grammar is not None
        constraint = self.constraints.get(grammar)
        token_ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        for token_id in [*token_ids, EOS_ID[self.family]]:
            if not constraint.allowed()[token_id >> 3] >> (token_id & 7) & 1:
                return False
            constraint = constraint.after(token_id)
        return True


def language(model_id: str) -> Language:
    file = MODELS / model_id / "tokenizer.json"
    family = CATALOG[model_id].family
    return Language(
        family, Tokenizer.from_file(str(file)), Constraints.load(file, {EOS_ID[family]})
    )


@pytest.fixture(scope="module")
def languages() -> dict[Family, Language]:
    return {CATALOG[model_id].family: language(model_id) for model_id in EMBEDDED}


def test_published_answers_can_be_written(languages: dict[Family, Language]) -> None:
    golden = read_golden()
    catalog = load_catalog(CATALOG_FILE, golden.answers)
    counts = Counter[str]()
    for model_id, answers in golden.answers.items():
        entry = catalog[model_id]
        for answer in answers:
            question = Question.of_text(entry, answer.prompt, (640, 480))
            if answer.excluded:
                counts["excluded"] += 1
            elif question.task_id is None or question.grammar is None:
                counts["any text"] += 1
            else:
                task_id, parameters = question.task_id, question.parameters
                language = languages[entry.family]
                assert language.is_well_formed(task_id, parameters, answer.text, entry)
                counts["constrained"] += 1
    assert counts == {"constrained": 23, "any text": 13, "excluded": 1}


VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
MASKS = "instance_segmentation"
OBJECTS = "object_detection"
NONE = TaskParameters()
STAR_OR_CAT = TaskParameters(phrases=("star", "cat"))
PLATE = TaskParameters(labels=("plate",))
TRIANGLE = f"{BOX}<loc_5><loc_6>"
MASK = f"{FOUR}{SIXTEEN}"
FLORENCE2 = RELEASED["florence2"]
PALIGEMMA = RELEASED["paligemma"]
OTHER_FLORENCE2 = replace(FLORENCE2, forced_names=False)
OTHER_PALIGEMMA = replace(PALIGEMMA, forced_names=False)
REFCOCO_ID = "paligemma-3b-ft-refcoco-seg-224"
REFCOCO = load_catalog(CATALOG_FILE, [REFCOCO_ID])[REFCOCO_ID]


@pytest.mark.parametrize(
    ("entry", "task_id", "parameters", "text", "expected"),
    [
        # Florence-2-large repeats the start token
        (FLORENCE2, OBJECTS, NONE, f"<s><s>star{BOX}{BOX}circle{BOX}", True),
        (FLORENCE2, OBJECTS, NONE, f"star{BOX}<loc_5>", False),
        (FLORENCE2, OBJECTS, NONE, "star", False),
        (FLORENCE2, OBJECTS, NONE, BOX, False),
        (FLORENCE2, "region_proposal", NONE, f"{BOX}{BOX}", True),
        (FLORENCE2, "region_proposal", NONE, f"star{BOX}", False),
        (FLORENCE2, VOCABULARY, NAMES, "", True),
        (FLORENCE2, VOCABULARY, NAMES, f"star<poly>{TRIANGLE}</poly>", True),
        (FLORENCE2, VOCABULARY, NAMES, f"Red CIRCLE{BOX} a star{BOX}{BOX}an Star{BOX}", True),
        (FLORENCE2, VOCABULARY, NAMES, f"a blue star{BOX}", False),
        (FLORENCE2, VOCABULARY, NAMES, f"red{BOX}", False),
        (FLORENCE2, GROUNDING, TaskParameters(caption="a star"), f"a blue star{BOX}", True),
        (FLORENCE2, GROUNDING, TaskParameters(phrases=("A star",)), f"A star{BOX} star{BOX}", True),
        (FLORENCE2, GROUNDING, TaskParameters(phrases=("A star",)), f"A stars{BOX}", False),
        (FLORENCE2, MASKS, PHRASE, "", True),
        (FLORENCE2, MASKS, PHRASE, TRIANGLE, True),
        (FLORENCE2, MASKS, PHRASE, f"{TRIANGLE}<sep>{TRIANGLE}<sep>{TRIANGLE}", True),
        (FLORENCE2, MASKS, PHRASE, f"<poly>{TRIANGLE}<sep>{TRIANGLE}</poly>" * 2, True),
        (FLORENCE2, MASKS, PHRASE, f"{TRIANGLE}<loc_7>", False),
        (FLORENCE2, MASKS, PHRASE, BOX, False),
        (FLORENCE2, MASKS, STAR_OR_CAT, f"dog{TRIANGLE}", True),
        (FLORENCE2, MASKS, STAR_OR_CAT, f"star{BOX}", False),
        (FLORENCE2, "ocr_with_regions", NONE, f"AB{QUAD}STOP 24 h{QUAD}", True),
        (FLORENCE2, "ocr_with_regions", NONE, f"AB{BOX}", False),
        (FLORENCE2, "region_description", NONE, f"a star{BOX}", True),
        (FLORENCE2, "region_description", NONE, "a star", True),
        (FLORENCE2, "region_description", NONE, "a star<loc_1>", False),
        (PALIGEMMA, VOCABULARY, NAMES, "", True),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} star ; {FOUR} red circle", True),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} The STAR;{FOUR}star; {FOUR}an Red circle", True),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} red", False),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} circle", False),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR}<loc0005> star", False),
        (PALIGEMMA, VOCABULARY, NAMES, "star", False),
        (PALIGEMMA, GROUNDING, ODD, f"{FOUR}<loc0005>", False),
        (PALIGEMMA, MASKS, PHRASE, f"{MASK} star ; {MASK} star", True),
        (PALIGEMMA, MASKS, PHRASE, f"{MASK} a Star", True),
        (PALIGEMMA, MASKS, PHRASE, f"{FOUR} {SIXTEEN} star", True),
        (PALIGEMMA, MASKS, PHRASE, f"{MASK} a stars", False),
        (PALIGEMMA, MASKS, PHRASE, f"{MASK}<seg001> star", False),
        (PALIGEMMA, MASKS, PHRASE, f"{FOUR} star", False),
        (PALIGEMMA, MASKS, PHRASE, f"{FOUR}  {SIXTEEN} star", False),
        (PALIGEMMA, MASKS, PHRASE, MASK, False),
        (PALIGEMMA, MASKS, STAR_OR_CAT, f"{MASK} cat ; {FOUR} {SIXTEEN} star", True),
        # labels of a fine-tune are its own
        (OTHER_FLORENCE2, VOCABULARY, PLATE, f"plate ABC1234{BOX}", True),
        (OTHER_FLORENCE2, VOCABULARY, PLATE, f"{BOX}", False),
        (OTHER_FLORENCE2, VOCABULARY, PLATE, f"plate{BOX}<loc_5>", False),
        (OTHER_PALIGEMMA, VOCABULARY, PLATE, f"{FOUR} plate ABC1234", True),
        (OTHER_PALIGEMMA, VOCABULARY, PLATE, f"{FOUR} a ; {FOUR} b;{FOUR} c", True),
        (OTHER_PALIGEMMA, VOCABULARY, PLATE, f"{FOUR}", True),
        (OTHER_PALIGEMMA, VOCABULARY, PLATE, "plate", False),
        (OTHER_PALIGEMMA, VOCABULARY, PLATE, f"{FOUR}{FOUR} plate", False),
        (OTHER_PALIGEMMA, MASKS, PHRASE, f"{FOUR} {SIXTEEN} crack", True),
        (OTHER_PALIGEMMA, MASKS, PHRASE, f"{FOUR} crack", False),
        # masks of refcoco have no label
        (REFCOCO, MASKS, PHRASE, "", True),
        (REFCOCO, MASKS, PHRASE, MASK, True),
        (REFCOCO, MASKS, PHRASE, f"{MASK} star", False),
        (REFCOCO, MASKS, PHRASE, FOUR, False),
    ],
)
def test_forms_of_answers(
    languages: dict[Family, Language],
    entry: CatalogEntry,
    task_id: str,
    parameters: TaskParameters,
    text: str,
    expected: bool,
) -> None:
    language = languages[entry.family]
    assert language.is_well_formed(task_id, parameters, text, entry) == expected


@pytest.mark.parametrize("label", ODD_LABELS)
def test_odd_labels(languages: dict[Family, Language], label: str) -> None:
    text = f"{label}{BOX}red{BOX}red circle{BOX}"
    assert languages["florence2"].is_well_formed(GROUNDING, ODD, text)
    if label != "<loc0005>":
        text = f"{FOUR} {label} ; {FOUR} red ; {FOUR} red circle"
        assert languages["paligemma"].is_well_formed(GROUNDING, ODD, text)


@pytest.mark.parametrize("task_id", ["captioning", "ocr", "visual_question_answering"])
def test_text_has_no_grammar(task_id: str) -> None:
    for family, entry in RELEASED.items():
        assert RUNNER_FAMILIES[family].answer_grammar(entry, task_id, TaskParameters()) is None
