"""Questions of every task of the public API about a scene of things, with their true answers.

The spans of a text answer say which things or lines it mentions: a thing by its index, a line by
`FIRST_LINE` plus its index.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from numpy.random import Generator, default_rng

from export.scenes.questions import with_article
from export.scenes.truth import (
    DetectionsTruth,
    InstancesTruth,
    LabelledBox,
    Parameters,
    QuadText,
    Question,
    TextRegionsTruth,
    TextTruth,
)
from laboratory.things.catalogue import KINDS, THINGS, Thing, plural_of
from laboratory.things.scene import MAX_THINGS, PlacedThing, ThingScene

FIRST_LINE = MAX_THINGS
_NUMBER_WORDS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_MAX_DESCRIBED = 4  # things that a detailed caption describes one by one
_LOOKALIKE_SHARE = 0.4  # absent labels that look like a thing of the scene
_PLURAL_KINDS = {"fruit": "fruits", "food": "foods", "clothing": "clothes", "jewellery": "jewels"}


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text answer with the subjects that it mentions."""

    text: str
    subjects: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SpannedQuestion:
    """A question; `spans` join to the text of a text answer."""

    question: Question
    spans: tuple[Span, ...] = ()


def thing_questions(scene: ThingScene) -> tuple[SpannedQuestion, ...]:
    """Return the questions of every task; things of questions about one are drawn by the seed."""
    rng = default_rng((scene.seed, len(scene.things), 1))
    asked = [
        _text("captioning", "short", short_caption(scene)),
        _text("captioning", "detailed", detailed_caption(scene)),
    ]
    for task, labels in (
        ("object_detection", [placed.thing.name for placed in scene.things]),
        ("dense_region_captioning", [placed.description for placed in scene.things]),
        ("region_proposal", [""] * len(scene.things)),
    ):
        boxes = _boxes(zip(labels, scene.things, strict=True))
        asked.append(SpannedQuestion(Question(task, task, {}, boxes)))
    asked += map(SpannedQuestion, _reading(scene))
    if scene.lines:
        index = int(rng.integers(len(scene.lines)))
        span = Span(scene.lines[index].text, (FIRST_LINE + index,))
        region = list(scene.lines[index].box_xyxy)
        asked.append(_text("region_description", "text", [span], region))
    absent = absent_thing(scene, rng)
    asked += map(SpannedQuestion, open_vocabulary_detection(scene, absent, rng))
    asked += question_answering(scene, absent, rng)
    if scene.things:
        asked += questions_about_one(scene, int(rng.integers(len(scene.things))))
        asked += map(SpannedQuestion, phrase_grounding(scene, rng))
    return tuple(asked)


def absent_thing(scene: ThingScene, rng: Generator) -> Thing:
    """Return a thing none of whose labels fits a thing of the scene, often a look-alike."""
    present = set(chain.from_iterable(placed.thing.labels for placed in scene.things))
    absent = [thing for thing in THINGS if present.isdisjoint((thing.name, *thing.synonyms))]
    lookalikes = set(chain.from_iterable(placed.thing.lookalikes for placed in scene.things))
    similar = [thing for thing in absent if thing.name in lookalikes]
    among = similar if similar and rng.random() < _LOOKALIKE_SHARE else absent
    return among[int(rng.integers(len(among)))]


def short_caption(scene: ThingScene) -> list[Span]:
    """Return `a cat left of a red car`, or the things with their numbers, then ` with text`."""
    spans = list[Span]()
    if len(scene.things) == 2 and scene.things[0].name != scene.things[1].name:
        spans = related_things(scene)
    elif scene.things:
        spans = _joined(_grouped(scene))
    if scene.lines:
        spans += [Span(" with ")] * bool(spans)
        spans.append(Span("text", _line_subjects(scene)))
    return spans


def detailed_caption(scene: ThingScene) -> list[Span]:
    """Return a sentence with number, background and things, and one with the text."""
    num = len(scene.things)
    everything = tuple(range(num))
    word = "thing" if num == 1 else "things"
    spans = [
        Span("The image shows "),
        Span(f"{_NUMBER_WORDS[num]} {word}", everything),
        Span(f" on a {scene.background.brightness} background"),
    ]
    if num:
        described = [
            Span(with_article(placed.description), (index,))
            for index, placed in enumerate(scene.things)
        ]
        listed = described if num <= _MAX_DESCRIBED else _grouped(scene)
        spans += [Span(": "), *_joined(listed)]
    spans.append(Span("."))
    if scene.lines:
        spans += [Span(" The text says "), *_line_spans(scene, " "), Span(".")]
    return spans


def related_things(scene: ThingScene) -> list[Span]:
    first, second = scene.things
    names = [Span(with_article(placed.name), (i,)) for i, placed in enumerate(scene.things)]
    relation = _relation(first, second)
    if relation == "below":
        names.reverse()
        relation = "above"
    return [names[0], Span(f" {relation} "), names[1]]


def _relation(first: PlacedThing, second: PlacedThing) -> str:
    """Return where the first of two things, ordered left to right, lies."""
    across = _middle(second, 0) - _middle(first, 0)
    down = _middle(second, 1) - _middle(first, 1)
    if across >= abs(down):
        return "left of"
    return "above" if down > 0 else "below"


def _middle(placed: PlacedThing, axis: int) -> float:
    return (placed.box_xyxy[axis] + placed.box_xyxy[axis + 2]) / 2


def _grouped(scene: ThingScene) -> list[Span]:
    """Return `two cats` and `a red car`, in the order of the first of each."""
    groups: dict[str, list[int]] = {}
    for index, placed in enumerate(scene.things):
        groups.setdefault(placed.name, []).append(index)
    spans = []
    for name, indices in groups.items():
        placed = scene.things[indices[0]]
        plural = f"{placed.color} {placed.thing.plural}" if placed.color else placed.thing.plural
        number = _NUMBER_WORDS[len(indices)]
        text = with_article(name) if len(indices) == 1 else f"{number} {plural}"
        spans.append(Span(text, tuple(indices)))
    return spans


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Return the spans with commas and `and` between them."""
    joined = [spans[0]]
    for index, span in enumerate(spans[1:], start=1):
        joined += [Span(" and " if index == len(spans) - 1 else ", "), span]
    return joined


def _line_subjects(scene: ThingScene) -> tuple[int, ...]:
    return tuple(FIRST_LINE + index for index in range(len(scene.lines)))


def _line_spans(scene: ThingScene, separator: str) -> list[Span]:
    spans = []
    for index, line in enumerate(scene.lines):
        if index:
            spans.append(Span(separator))
        spans.append(Span(line.text, (FIRST_LINE + index,)))
    return spans


def _reading(scene: ThingScene) -> Iterator[Question]:
    quads = tuple(QuadText(line.text, line.quad_xy) for line in scene.lines)
    yield Question("ocr_with_regions", "ocr_with_regions", {}, TextRegionsTruth(quads))


def open_vocabulary_detection(
    scene: ThingScene, absent: Thing, rng: Generator
) -> Iterator[Question]:
    """Yield open-vocabulary detection: name, synonym, kind, coloured name, several, absent."""
    if not scene.things:
        yield _labels("no object", [absent.name], scene)
        return
    chosen = scene.things[int(rng.integers(len(scene.things)))]
    yield _labels("name", [chosen.thing.name], scene)
    yield _labels("kind", [_any(rng, chosen.thing.kinds)], scene)
    if chosen.thing.synonyms:
        yield _labels("synonym", [_any(rng, chosen.thing.synonyms)], scene)
    if chosen.color:
        yield _labels("coloured", [chosen.name], scene)
    names = dict.fromkeys(placed.thing.name for placed in scene.things)
    several = [*list(names)[:_MAX_DESCRIBED], absent.name]
    yield _labels("several", rng.permutation(several).tolist(), scene)
    is_alike = any(absent.name in placed.thing.lookalikes for placed in scene.things)
    variant = "absent lookalike" if is_alike else "absent"
    yield _labels(variant, [_any(rng, (absent.name, *absent.synonyms))], scene)


def _labels(variant: str, labels: list[str], scene: ThingScene) -> Question:
    task = "open_vocabulary_detection"
    found = []
    for label in labels:
        for placed in scene.things:
            if label in (placed.name, *placed.thing.labels):
                found.append((label, placed))
    return Question(f"{task} {variant}", task, {"labels": labels}, _boxes(found))


def phrase_grounding(scene: ThingScene, rng: Generator) -> Iterator[Question]:
    """Yield phrase grounding: a caption of all names, and some of them as phrases."""
    task = "phrase_grounding"
    names = list(dict.fromkeys(placed.name for placed in scene.things))
    named = [Span(with_article(name)) for name in names]
    caption = "".join(span.text for span in _joined(named))
    yield Question(f"{task} caption", task, {"caption": caption}, _phrases(names, scene))
    some = rng.permutation(names)[: int(rng.integers(1, min(4, len(names)) + 1))].tolist()
    phrases = [with_article(name) for name in some]
    yield Question(f"{task} phrases", task, {"phrases": phrases}, _phrases(some, scene))


def _phrases(names: Iterable[str], scene: ThingScene) -> DetectionsTruth:
    found = []
    for name in names:
        for placed in scene.things:
            if placed.name == name:
                found.append((with_article(name), placed))
    return _boxes(found)


def questions_about_one(scene: ThingScene, index: int) -> Iterator[SpannedQuestion]:
    """Yield the questions about one thing: its outline, its category and its description."""
    chosen = scene.things[index]
    region = list(chosen.box_xyxy)
    task = "instance_segmentation"
    outline = InstancesTruth((chosen.outline_xy,))
    if [placed.name for placed in scene.things].count(chosen.name) == 1:
        phrase = Question(f"{task} phrase", task, {"phrase": chosen.name}, outline)
        yield SpannedQuestion(phrase)
    yield SpannedQuestion(Question(f"{task} region", task, {"region": region}, outline))
    task = "region_description"
    yield _text(task, "category", [Span(chosen.thing.name, (index,))], region)
    yield _text(task, "description", [Span(chosen.description, (index,))], region)


def question_answering(
    scene: ThingScene, absent: Thing, rng: Generator
) -> Iterator[SpannedQuestion]:
    """Yield the text of the lines, and visual question answering."""
    lines = _line_spans(scene, "\n")
    yield _spanned(Question("ocr", "ocr", {}, TextTruth("")), lines)
    yield _question("text", "what does the text say?", lines)
    everything = tuple(range(len(scene.things)))
    count = str(len(scene.things))
    yield _question("count", "how many things are there?", [Span(count, everything)])
    is_alike = any(absent.name in placed.thing.lookalikes for placed in scene.things)
    variant = "presence lookalike" if is_alike else "presence"
    yield _question(variant, f"is there {with_article(absent.name)}?", [Span("no")])
    kinds = set(chain.from_iterable(placed.thing.kinds for placed in scene.things))
    kind = _any(rng, [kind for kind in KINDS if kind not in kinds])
    yield _question("kind", f"is there {_kind_phrase(kind)}?", [Span("no")])
    if not scene.things:
        return
    index = int(rng.integers(len(scene.things)))
    chosen = scene.things[index]
    name = chosen.thing.name
    alike = tuple(i for i in everything if scene.things[i].thing.name == name)
    yield _question("presence", f"is there {with_article(name)}?", [Span("yes", alike)])
    kind = _any(rng, chosen.thing.kinds)
    of_kind = tuple(i for i in everything if kind in scene.things[i].thing.kinds)
    yield _question("kind", f"is there {_kind_phrase(kind)}?", [Span("yes", of_kind)])
    plural = _PLURAL_KINDS.get(kind, plural_of(kind))
    number = [Span(str(len(of_kind)), of_kind)]
    yield _question("count kind", f"how many {plural} are there?", number)
    number = [Span(str(len(alike)), alike)]
    yield _question("count name", f"how many {chosen.thing.plural} are there?", number)
    if chosen.color and len(alike) == 1:
        yield _question("color", f"what color is the {name}?", [Span(chosen.color, (index,))])
    if len(scene.things) == 2 and len(alike) == 1:
        relation = _relation(*scene.things)
        first, second = scene.things if relation != "below" else scene.things[::-1]
        side = "left of" if relation == "left of" else "above"
        answer = Span(first.thing.name, (scene.things.index(first),))
        if first.thing.name != second.thing.name:
            yield _question("relation", f"what is {side} the {second.thing.name}?", [answer])


def _kind_phrase(kind: str) -> str:
    return kind if kind in ("food", "clothing") else with_article(kind)


def _question(variant: str, question: str, spans: Sequence[Span]) -> SpannedQuestion:
    task = "visual_question_answering"
    asked = Question(f"{task} {variant}", task, {"question": question}, TextTruth(""))
    return _spanned(asked, spans)


def _text(
    task: str, detail: str, spans: Sequence[Span], region: list[float] | None = None
) -> SpannedQuestion:
    parameters: Parameters = {"detail": detail}
    if region is not None:
        parameters = {"detail": detail, "region": region}
    return _spanned(Question(f"{task} {detail}", task, parameters, TextTruth("")), spans)


def _spanned(question: Question, spans: Sequence[Span]) -> SpannedQuestion:
    text = "".join(span.text for span in spans)
    asked = Question(question.name, question.task, question.parameters, TextTruth(text))
    return SpannedQuestion(asked, tuple(spans))


def _boxes(labelled: Iterable[tuple[str, PlacedThing]]) -> DetectionsTruth:
    return DetectionsTruth(tuple(LabelledBox(label, placed.box_xyxy) for label, placed in labelled))


def _any(rng: Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
