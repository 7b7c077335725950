"""Random answers in the forms that checkpoints write, each with what a parser reads in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import assert_never

from tasks.families import FAMILIES
from tasks.parsing import without_article
from tasks.results import DetectionsResult, InstancesResult, TextRegionsResult, TextResult
from tasks.table import Family, TaskParameters
from tests.support.answers import generated
from tests.support.catalog import MASK_DECODER, RELEASED

_IMAGE_WH = (640, 480)
_WORDS = (
    "cat",
    "Red car",
    "man's hat",
    "grüner Käfer",
    "犬",
    "STOP 24 h",
    'my "b" {d}',
    "x < y 🙂",
)
_ARTICLES = ("", "", "a ", "an ", "the ", "The ")
_CASES: tuple[Callable[[str], str], ...] = (str, str.lower, str.upper, str.title)
_DETAILS = ("category", "description", "text")


@dataclass(frozen=True, slots=True)
class RandomAnswer:
    """The answers to the prompts of a task, and the labels or the text that they hold."""

    family: Family
    task_id: str
    parameters: TaskParameters
    texts: Sequence[str]  # one for each prompt
    expected: Sequence[str]

    def is_read_whole(self) -> bool:
        """Return True if the family's parser finds all that was written."""
        framed = [generated(text.replace("<s>", "")) for text in self.texts]
        mask_decoder = MASK_DECODER if self.family == "paligemma" else None
        result = FAMILIES[self.family].parse_answer(
            RELEASED[self.family],
            self.task_id,
            self.parameters,
            framed,
            _IMAGE_WH,
            "polygon",
            mask_decoder,
        )
        match result:
            case TextResult():
                return [result.text] == list(self.expected)
            case DetectionsResult():
                found = [each.label for each in result.detections]
            case InstancesResult():
                found = [each.label for each in result.instances]
            case TextRegionsResult():
                found = [each.text for each in result.text_regions]
            case _:
                assert_never(result)
        return found == list(self.expected)


def random_answer(family: Family, rng: Random) -> RandomAnswer:
    return rng.choice(_WRITERS[family])(rng)


def _florence2_objects(rng: Random) -> RandomAnswer:
    parameters = {
        "object_detection": TaskParameters(),
        "dense_region_captioning": TaskParameters(),
        "phrase_grounding": TaskParameters(caption="a cat and a car"),
    }
    task_id = rng.choice(list(parameters))
    labels: list[str] = []
    text = _start(rng)
    for label in _some_words(rng):
        num_boxes = rng.randint(1, 3)
        text += _space(rng) + label + _boxes(rng, num_boxes)
        labels += [label] * num_boxes
    return RandomAnswer("florence2", task_id, parameters[task_id], [text], labels)


def _florence2_proposals(rng: Random) -> RandomAnswer:
    num_boxes = rng.randint(0, 4)
    text = _start(rng) + _boxes(rng, num_boxes)
    return RandomAnswer("florence2", "region_proposal", TaskParameters(), [text], [""] * num_boxes)


def _florence2_names(rng: Random) -> RandomAnswer:
    names, task_id, parameters = _asked(rng)
    locate = rng.choice((_boxes, _marked_instances))
    labels: list[str] = []
    texts: list[str] = []
    for name in names:
        text = _start(rng)
        for _ in range(rng.randint(0, 2)):
            num_found = rng.randint(1, 3)
            text += _spelled(rng, name) + locate(rng, num_found)
            labels += [name] * num_found
        texts.append(text)
    return RandomAnswer("florence2", task_id, parameters, texts, labels)


def _florence2_instances(rng: Random) -> RandomAnswer:
    phrase = rng.choice(_WORDS)
    num_instances = rng.randint(1, 3)
    written = _marked_instances(rng, num_instances)
    if num_instances == 1 and rng.random() < 0.7:
        written = _instance(rng)
    text = _start(rng) + rng.choice(("", phrase)) + written
    return RandomAnswer(
        "florence2",
        "instance_segmentation",
        TaskParameters(phrase=phrase),
        [text],
        [phrase] * num_instances,
    )


def _florence2_words(rng: Random) -> RandomAnswer:
    words = list(_some_words(rng))
    text = _start(rng) + "".join(word + _locations(rng, 8) for word in words)
    return RandomAnswer("florence2", "ocr_with_regions", TaskParameters(), [text], words)


def _florence2_region(rng: Random) -> RandomAnswer:
    word = rng.choice(_WORDS)
    text = _start(rng) + word + _boxes(rng, rng.randint(0, 1))
    parameters = TaskParameters(region=(1, 2, 30, 40), detail=rng.choice(_DETAILS))
    return RandomAnswer("florence2", "region_description", parameters, [text], [word])


def _paligemma_objects(rng: Random) -> RandomAnswer:
    names, task_id, parameters = _asked(rng)
    found = rng.choices(names, k=rng.randint(0, 4))
    entries = [_yxyx(rng) + _spelled(rng, name) for name in found]
    text = rng.choice((" ; ", ";", "; ", " ;")).join(entries)
    return RandomAnswer("paligemma", task_id, parameters, [text], found)


def _paligemma_instances(rng: Random) -> RandomAnswer:
    phrase = rng.choice(_WORDS)
    num_instances = rng.randint(0, 2)
    entries = [_yxyx(rng) + _codes(rng) + _spelled(rng, phrase) for _ in range(num_instances)]
    return RandomAnswer(
        "paligemma",
        "instance_segmentation",
        TaskParameters(phrase=phrase),
        [" ; ".join(entries)],
        [phrase] * num_instances,
    )


_WRITERS: dict[Family, Sequence[Callable[[Random], RandomAnswer]]] = {
    "florence2": (
        _florence2_objects,
        _florence2_proposals,
        _florence2_names,
        _florence2_instances,
        _florence2_words,
        _florence2_region,
    ),
    "paligemma": (_paligemma_objects, _paligemma_instances),
}


def _asked(rng: Random) -> tuple[Sequence[str], str, TaskParameters]:
    """Return names, and a task that asks for them."""
    names = tuple(rng.choice(_ARTICLES) + word for word in rng.sample(_WORDS, rng.randint(1, 3)))
    if rng.random() < 0.5:
        return names, "open_vocabulary_detection", TaskParameters(labels=names)
    return names, "phrase_grounding", TaskParameters(phrases=names)


def _start(rng: Random) -> str:
    """Return the start tokens that Florence-2-large repeats."""
    return "<s>" * rng.randint(0, 2)


def _space(rng: Random) -> str:
    return rng.choice(("", " "))


def _spelled(rng: Random, name: str) -> str:
    """Return a name in other letters, with another article or none."""
    bare = rng.choice(_CASES)(without_article(name))
    return rng.choice((_space(rng) + name, _space(rng) + rng.choice(_ARTICLES) + bare))


def _some_words(rng: Random) -> Sequence[str]:
    return rng.choices(_WORDS, k=rng.randint(0, 4))


def _locations(rng: Random, num_locations: int) -> str:
    return "".join(f"<loc_{rng.randrange(1000)}>" for _ in range(num_locations))


def _boxes(rng: Random, num_boxes: int) -> str:
    boxes = ""
    for _ in range(num_boxes):
        x1, x2 = rng.sample(range(1000), 2)
        y1, y2 = rng.sample(range(1000), 2)
        boxes += f"<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>"
    return boxes


def _instance(rng: Random) -> str:
    """Return one to three polygons of three to six points; each has an area."""
    return "<sep>".join(
        _boxes(rng, 1) + _locations(rng, 2 * rng.randint(1, 4)) for _ in range(rng.randint(1, 3))
    )


def _marked_instances(rng: Random, num_instances: int) -> str:
    return "".join(f"<poly>{_instance(rng)}</poly>" for _ in range(num_instances))


def _yxyx(rng: Random) -> str:
    x1, x2 = rng.sample(range(1024), 2)
    y1, y2 = rng.sample(range(1024), 2)
    return f"<loc{y1:04}><loc{x1:04}><loc{y2:04}><loc{x2:04}>"


def _codes(rng: Random) -> str:
    return "".join(f"<seg{rng.randrange(128):03}>" for _ in range(16))
