"""Grammars over the embedded checkpoints' vocabularies: what they allow, and what not."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from export import golden
from export.checkpoints.bases import CATALOG_FILE
from export.scenes import sample_scene
from laboratory.questions import question_prompts
from laboratory.training.answers import (
    florence2_answer,
    paligemma_answer,
    picture_of,
)
from runners.tokens.text import Constraints
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES
from tasks.parsing import without_article
from tasks.results import TextResult, label_of, objects_of
from tasks.table import TASKS, Family, TaskParameters, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import CATALOG, MASK_DECODER, RELEASED
from tests.support.export_cli import EMBEDDED, MODELS
from tests.support.real_tokenizers import EOS_ID

WRITERS: dict[Family, Callable[..., Any]] = {
    "florence2": florence2_answer,
    "paligemma": paligemma_answer,
}
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
        state = constraint.start
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
    return {CATALOG[model_id].family: language(model_id) for model_id in EMBEDDED}


def true_answers(family: Family, model_id: str) -> Iterator[tuple[str, TaskParameters, str]]:
    for seed in range(40):
        picture = picture_of(sample_scene(seed, None if seed % 5 else 0))
        for question in picture.questions:
            parameters = parse_parameters(TASKS[question.task], question.parameters)
            if FAMILIES[family].answer_grammar(RELEASED[family], question.task, parameters) is None:
                continue
            for prompt in question_prompts(CATALOG[model_id], question):
                pieces = WRITERS[family](picture, question, prompt.labels)
                yield question.task, parameters, "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_true_answers(languages: dict[Family, Language], model_id: str) -> None:
    family = CATALOG[model_id].family
    answers = list(true_answers(family, model_id))
    assert len(answers) > 80
    for task_id, parameters, text in answers:
        assert languages[family].is_well_formed(task_id, parameters, text), (task_id, text)


def test_published_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(["--reach"]) == 0
    *_, total = capsys.readouterr().out.splitlines()
    assert total == "36 of 37 published answers can be written; 1 excluded"


TEXTS = 'cat|Red car|man\'s hat|grüner Käfer|犬|STOP 24 h|my "b" {d}|x < y 🙂'
WORDS = TEXTS.split("|")
ARTICLES = ("", "", "a ", "an ", "the ", "The ")
OBJECT_TASKS = ["object_detection", "dense_region_captioning", "phrase_grounding", "names"]
OTHER_TASKS = ["region_proposal", "instance_segmentation", "ocr_with_regions", "region_description"]


@dataclass(frozen=True, slots=True)
class RandomAnswer:
    """The answers to the prompts of a task, and the labels or the text that they hold."""

    task_id: str
    parameters: TaskParameters
    texts: list[str]  # one for each prompt
    expected: list[str]

    def is_read_whole(self, family: Family) -> bool:
        """Return True if the family's parser finds all that was written."""
        answers = [generated(text.replace("<s>", "")) for text in self.texts]
        request = (RELEASED[family], self.task_id, self.parameters, answers, (640, 480), "polygon")
        result = FAMILIES[family].parse_answer(*request, MASK_DECODER)  # type: ignore[arg-type]
        if isinstance(result, TextResult):
            return [result.text] == self.expected
        return list(map(label_of, objects_of(result))) == self.expected


def random_florence2(rng: Random) -> RandomAnswer:
    """Return a random answer; Florence-2-large repeats the start token before it."""
    start = "<s>" * rng.randint(0, 2)
    task_id = rng.choice(OBJECT_TASKS + OTHER_TASKS)
    words = rng.choices(WORDS, k=rng.randint(0, 4))
    word = rng.choice(WORDS)
    number = rng.randint(1, 3)
    parameters = TaskParameters()
    match task_id:
        case "names":
            return random_names(rng)
        case "region_proposal":
            return RandomAnswer(task_id, parameters, [start + boxes(rng, number)], [""] * number)
        case "ocr_with_regions":
            text = start + "".join(word + locations(rng, 8) for word in words)
            return RandomAnswer(task_id, parameters, [text], words)
        case "region_description":
            parameters = TaskParameters(region=(1, 2, 30, 40), detail="text")
            text = start + word + boxes(rng, rng.randint(0, 1))
            return RandomAnswer(task_id, parameters, [text], [word])
        case "instance_segmentation":
            shapes = instance(rng) if number == 1 else marked_instances(rng, number)
            text = start + rng.choice(("", word)) + shapes
            return RandomAnswer(task_id, TaskParameters(phrase=word), [text], [word] * number)
        case "phrase_grounding":
            parameters = TaskParameters(caption="a cat and a car")
    text = start + "".join(rng.choice(("", " ")) + label + boxes(rng, number) for label in words)
    labels: list[str] = []
    for label in words:
        labels += [label] * number
    return RandomAnswer(task_id, parameters, [text], labels)


def random_names(rng: Random) -> RandomAnswer:
    task_id, names, parameters = named_task(rng)
    locate = rng.choice((boxes, marked_instances))
    labels: list[str] = []
    texts: list[str] = []
    for name in names:
        text = ""
        for _ in range(rng.randint(0, 2)):
            number = rng.randint(1, 3)
            text += spelled(rng, name) + locate(rng, number)
            labels += [name] * number
        texts.append(text)
    return RandomAnswer(task_id, parameters, texts, labels)


def random_paligemma(rng: Random) -> RandomAnswer:
    task_id, names, parameters = named_task(rng)
    if rng.random() < 0.5:
        task_id, names = "instance_segmentation", (rng.choice(WORDS),)
        parameters = TaskParameters(phrase=names[0])
    labels = rng.choices(names, k=rng.randint(0, 4))
    entries: list[str] = []
    for label in labels:
        y1, y2, x1, x2 = (*rng.sample(range(1024), 2), *rng.sample(range(1024), 2))
        codes = [f"<seg{rng.randrange(128):03}>" for _ in range(16)]
        shape = "".join(codes) if task_id == "instance_segmentation" else ""
        box = f"<loc{y1:04}><loc{x1:04}><loc{y2:04}><loc{x2:04}>"
        entries.append(box + shape + spelled(rng, label))
    text = rng.choice((" ; ", ";", "; ", " ;")).join(entries)
    return RandomAnswer(task_id, parameters, [text], labels)


def named_task(rng: Random) -> tuple[str, tuple[str, ...], TaskParameters]:
    names = tuple(rng.choice(ARTICLES) + word for word in rng.sample(WORDS, rng.randint(1, 3)))
    if rng.random() < 0.5:
        return "open_vocabulary_detection", names, TaskParameters(labels=names)
    return "phrase_grounding", names, TaskParameters(phrases=names)


def spelled(rng: Random, name: str) -> str:
    """Return a name in other letters, with another article or none."""
    bare = rng.choice((str, str.lower, str.upper, str.title))(without_article(name))
    return rng.choice(("", " ")) + rng.choice((name, rng.choice(ARTICLES) + bare))


def locations(rng: Random, number: int) -> str:
    return "".join(f"<loc_{rng.randrange(1000)}>" for _ in range(number))


def boxes(rng: Random, number: int) -> str:
    text = ""
    for _ in range(number):
        x1, x2 = rng.sample(range(1000), 2)
        y1, y2 = rng.sample(range(1000), 2)
        text += f"<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>"
    return text


def instance(rng: Random) -> str:
    """Return one to three polygons of three to six points; each has an area."""
    polygons = [boxes(rng, 1) + locations(rng, 2 * rng.randint(1, 4))] * rng.randint(1, 3)
    return "<sep>".join(polygons)


def marked_instances(rng: Random, number: int) -> str:
    return "".join(f"<poly>{instance(rng)}</poly>" for _ in range(number))


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("num_answers", [300, pytest.param(5000, marks=pytest.mark.long)])
def test_random_answers(
    languages: dict[Family, Language], family: Family, num_answers: int
) -> None:
    """The grammar accepts every text that the parser reads whole."""
    write = random_florence2 if family == "florence2" else random_paligemma
    rng = random.Random(num_answers)
    for _ in range(num_answers):
        answer = write(rng)
        assert answer.is_read_whole(family), answer
        for text in answer.texts:
            assert languages[family].is_well_formed(answer.task_id, answer.parameters, text), answer


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
        (FLORENCE2, OBJECTS, NONE, f"star{BOX}{BOX}circle{BOX}", True),
        (FLORENCE2, OBJECTS, NONE, f"star{BOX}<loc_5>", False),
        (FLORENCE2, OBJECTS, NONE, "star", False),
        (FLORENCE2, OBJECTS, NONE, BOX, False),
        (FLORENCE2, "region_proposal", NONE, f"{BOX}{BOX}", True),
        (FLORENCE2, "region_proposal", NONE, f"star{BOX}", False),
        (FLORENCE2, VOCABULARY, NAMES, "", True),
        (FLORENCE2, VOCABULARY, NAMES, f"star<poly>{TRIANGLE}</poly>", True),
        (FLORENCE2, VOCABULARY, NAMES, f"red circle{BOX}a star{BOX}{BOX}", True),
        (FLORENCE2, VOCABULARY, NAMES, f"a blue star{BOX}", False),
        (FLORENCE2, VOCABULARY, NAMES, f"red{BOX}", False),
        (FLORENCE2, GROUNDING, TaskParameters(caption="a star"), f"a blue star{BOX}", True),
        (FLORENCE2, GROUNDING, TaskParameters(phrases=("A star",)), f"A star{BOX} star{BOX}", True),
        (FLORENCE2, GROUNDING, TaskParameters(phrases=("A star",)), f"A stars{BOX}", False),
        (FLORENCE2, MASKS, PHRASE, TRIANGLE, True),
        (FLORENCE2, MASKS, PHRASE, f"{TRIANGLE}<sep>{TRIANGLE}", True),
        (FLORENCE2, MASKS, PHRASE, f"{TRIANGLE}<loc_7>", False),
        (FLORENCE2, MASKS, PHRASE, BOX, False),
        (FLORENCE2, MASKS, STAR_OR_CAT, f"dog{TRIANGLE}", True),
        (FLORENCE2, MASKS, STAR_OR_CAT, f"star{BOX}", False),
        (FLORENCE2, "ocr_with_regions", NONE, f"AB{QUAD}", True),
        (FLORENCE2, "ocr_with_regions", NONE, f"AB{BOX}", False),
        (FLORENCE2, "region_description", NONE, f"a star{BOX}", True),
        (FLORENCE2, "region_description", NONE, "a star", True),
        (FLORENCE2, "region_description", NONE, "a star<loc_1>", False),
        (PALIGEMMA, VOCABULARY, NAMES, "", True),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} star ; {FOUR} red circle", True),
        (PALIGEMMA, VOCABULARY, NAMES, f"{FOUR} star;{FOUR}star", True),
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
        assert FAMILIES[family].answer_grammar(entry, task_id, TaskParameters()) is None
