"""Examples of a task: the prompt that the service sends about a labelled image, and the answer that
it parses back.

A dataset has any format that `diptych evaluate` reads: the client's readers read the labels, and
the service's code decodes the images. Damaged labels and images are left out. Boxes are in pixels
of the upright image. Objects are written from left to right, as the embedded checkpoints were
trained: an order that follows from the picture can be learnt. Sources of the formats: transformers,
models/florence2/processing_florence2.py; google-research/big_vision,
big_vision/pp/proj/paligemma/segmentation.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from numpy.random import Generator, default_rng
from tqdm import tqdm

from diptych_client.evaluation import dataset as evaluated
from diptych_client.evaluation.dataset import NoSuchSplit
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.inputs import Folder, Opening, Problems, open_images
from diptych_client.long_runs import RunError
from diptych_client.matching import LabelledBox
from export.errors import TuningError
from imaging.errors import ImageError
from imaging.local_files import read_image
from tasks.catalog import CatalogEntry
from tasks.errors import TaskError
from tasks.families import FAMILIES
from tasks.florence2.locations import box_tokens as florence2_box_tokens
from tasks.florence2.prompts import asked_per_prompt
from tasks.paligemma.locations import box_tokens as paligemma_box_tokens
from tasks.parameter_kinds import MAX_LABELS
from tasks.parameters import TaskParameters, parse_parameters
from tasks.parsing import without_article
from tasks.prompts import Prompt, PromptSegment, join_segments
from tasks.results import BoxXyxy
from tasks.table import TASKS

_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with the labels of one row; None for kinds of labels that the row does not have."""

    path: Path
    size_wh: tuple[int, int]  # upright image, px
    objects: tuple[LabelledBox, ...] | None = None
    captions: tuple[str, ...] = ()
    text: str | None = None
    region_xyxy: BoxXyxy | None = None
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()  # each with its answers
    phrases: tuple[LabelledBox, ...] = ()

    @property
    def has_labels(self) -> bool:
        """True if there is something to learn."""
        return bool(self.objects or self.captions or self.text or self.questions or self.phrases)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The labelled images of a dataset, and what of it is damaged."""

    images: tuple[LabelledImage, ...]
    problems: Problems


def read_labels(path: Path, work: Path, images: Path | None = None) -> Dataset:
    """Read the split `train` of a dataset, or one without splits whole.

    `work` is the folder for the files of an archive, `images` that of images elsewhere. Raise
    `TuningError` for a missing or malformed dataset, and for one without a readable image.
    """
    problems = Problems()
    try:
        opened = open_images([str(path)], Opening(work, problems))
        try:
            found = read_dataset(opened.path, images, _SPLIT, problems)
        except NoSuchSplit:
            found = read_dataset(opened.path, images, None, problems)
    except RunError as error:
        raise TuningError(str(error)) from error
    if not isinstance(found.store, Folder):
        raise TuningError(f"{path} has its images in Parquet or Arrow files; write them as files")
    sizes = _Sizes(problems)
    labelled = []
    for row in tqdm(found.images, desc="reading", unit=" images", leave=False, disable=None):
        file = found.store.path / row.image.name
        if size_wh := sizes.of(file):
            labelled.append(_labelled(file, size_wh, row))
    if not labelled:
        raise TuningError(f"{path} has no image that can be read: {problems.lines[0]}")
    if not any(image.has_labels for image in labelled):
        raise TuningError(f"{path}: {found.note or f'no labels found for {len(labelled)} images'}")
    return Dataset(tuple(labelled), problems)


class _Sizes:
    """Sizes of image files. Each file is decoded once: a damaged one is a problem."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._sizes = dict[Path, tuple[int, int] | None]()

    def of(self, path: Path) -> tuple[int, int] | None:
        """Return the size of the upright image, or None if it cannot be read."""
        if path not in self._sizes:
            self._sizes[path] = None
            try:
                self._sizes[path] = read_image(path).size
            except (OSError, ImageError) as error:
                self._problems.add(path, f"it cannot be read: {error}", "image left out")
        return self._sizes[path]


def _labelled(path: Path, size_wh: tuple[int, int], row: evaluated.LabelledImage) -> LabelledImage:
    phrases = [(each.phrase, each.box_xyxy) for each in row.phrases if each.box_xyxy is not None]
    objects = None
    if row.objects is not None:
        own = [(each.label, each.box_xyxy) for each in row.objects if not each.is_crowd]
        objects = _boxes(own)
    return LabelledImage(
        path,
        size_wh,
        objects,
        captions=row.captions or (),
        text=row.text,
        region_xyxy=row.region,
        questions=tuple((each.question, each.answers) for each in row.questions),
        phrases=_boxes(phrases),
    )


def _boxes(labelled: Iterable[tuple[str, BoxXyxy]]) -> tuple[LabelledBox, ...]:
    """Return boxes whose labels have single spaces, as a request's labels are read."""
    return tuple(LabelledBox(" ".join(label.split()), box) for label, box in labelled)


TUNED_TASKS = (
    "captioning",
    "object_detection",
    "open_vocabulary_detection",
    "phrase_grounding",
    "region_proposal",
    "ocr",
    "region_description",
    "visual_question_answering",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its answer, both in segments that separate labels from locations.

    Parser and prompt have the same `parameters`.
    """

    image: Path
    prompt: Prompt
    answer: Prompt
    parameters: TaskParameters
    size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Parameters of a request, and the true objects or text of its answer."""

    values: Mapping[str, object]
    truth: Sequence[LabelledBox] | str


def make_examples(
    entry: CatalogEntry, task_id: str, labelled: Sequence[LabelledImage], seed: int
) -> list[list[Example]]:
    """Return the examples of each image that has labels of the task.

    Raise `TuningError` for a task without labels of its kind, or a label that no request may have.
    """
    if task_id not in TUNED_TASKS:
        raise TuningError(f"no labels teach {task_id}; allowed are {', '.join(TUNED_TASKS)}")
    rng = default_rng(seed)
    objects = chain.from_iterable(image.objects or () for image in labelled)
    classes = sorted({each.label for each in objects})
    examples = []
    for image in labelled:
        own = list[Example]()
        for asked in _requests(task_id, image, classes, rng):
            own += _examples(entry, task_id, image, asked)
        if own:
            examples.append(own)
    if not examples:
        raise TuningError(
            f"the dataset has no labels of {task_id}; docs/evaluation.md lists the fields of each"
            " task"
        )
    return examples


def _examples(
    entry: CatalogEntry, task_id: str, image: LabelledImage, asked: _Asked
) -> Iterator[Example]:
    """Yield an example for each prompt of a request."""
    try:
        if not isinstance(asked.truth, str):
            # a label that a request for it could not have is refused
            for label in {each.label for each in asked.truth if each.label}:
                parse_parameters(TASKS["open_vocabulary_detection"], {"labels": [label]})
        parameters = parse_parameters(TASKS[task_id], asked.values)
        prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, image.size_wh)
    except TaskError as error:
        raise TuningError(f"{image.path}: {error}") from error
    if isinstance(asked.truth, str):
        segments = [PromptSegment(asked.truth)]
        if image.region_xyxy is not None and entry.family == "florence2":  # repeats the box
            segments.append(_tokens(florence2_box_tokens(image.region_xyxy, image.size_wh)))
        yield Example(image.path, prompts[0], join_segments(*segments), parameters, image.size_wh)
        return
    names = asked_per_prompt(parameters) if len(prompts) > 1 else ((),)
    for prompt, own in zip(prompts, names, strict=True):
        boxes = [each for each in asked.truth if not own or each.label in own]
        answer = _detections(entry, task_id, boxes, image.size_wh)
        asked_here = parameters
        if own and parameters.labels is not None:
            asked_here = replace(parameters, labels=own)
        elif own:
            asked_here = replace(parameters, phrases=own)
        yield Example(image.path, prompt, answer, asked_here, image.size_wh)


def _detections(
    entry: CatalogEntry, task_id: str, boxes: Sequence[LabelledBox], size_wh: tuple[int, int]
) -> Prompt:
    """Return labels before (Florence-2) or after locations, joined by ` ; ` (PaliGemma)."""
    segments: list[PromptSegment] = []
    for found in sorted(boxes, key=lambda each: each.box_xyxy[0] + each.box_xyxy[2]):
        if entry.family == "florence2":
            # same label as in the prompt
            is_bare = entry.drops_articles and task_id != "object_detection"
            label = without_article(found.label) if is_bare else found.label
            locations = _tokens(florence2_box_tokens(found.box_xyxy, size_wh))
            segments += (PromptSegment(label), locations)
        else:
            joint = " ; " if segments else ""
            locations = _tokens(paligemma_box_tokens(found.box_xyxy, size_wh))
            segments += (PromptSegment(joint), locations, PromptSegment(f" {found.label}"))
    return join_segments(*segments)


def _tokens(text: str) -> PromptSegment:
    return PromptSegment(text, is_control=True)


def _requests(
    task_id: str, image: LabelledImage, classes: Sequence[str], rng: Generator
) -> Iterator[_Asked]:
    """Yield the requests of a task that an image's labels answer."""
    match task_id:
        case "captioning":
            yield from (_Asked({}, caption) for caption in image.captions)
        case "object_detection" if image.objects is not None:
            yield _Asked({}, image.objects)
        case "open_vocabulary_detection" if image.objects is not None:
            # Absent names, as many and at least one, teach the model to leave them out.
            asked = sorted({each.label for each in image.objects})[:MAX_LABELS]
            others = [name for name in classes if name not in asked]
            num_others = min(len(others), max(1, len(asked)), MAX_LABELS - len(asked))
            if num_others:
                asked += rng.choice(others, num_others, replace=False).tolist()
            rng.shuffle(asked)
            if asked:
                found = [each for each in image.objects if each.label in asked]
                yield _Asked({"labels": asked}, found)
        case "phrase_grounding":
            names = list(dict.fromkeys(each.label for each in image.phrases))
            for start in range(0, len(names), MAX_LABELS):
                some = names[start : start + MAX_LABELS]
                found = [each for each in image.phrases if each.label in some]
                yield _Asked({"phrases": some}, found)
        case "region_proposal" if image.objects is not None:
            yield _Asked({}, [LabelledBox("", each.box_xyxy) for each in image.objects])
        case "ocr" if image.text is not None and image.region_xyxy is None:
            yield _Asked({}, image.text)
        case "region_description" if image.text is not None and image.region_xyxy is not None:
            yield _Asked({"region": list(image.region_xyxy)}, image.text)
        case "visual_question_answering":
            for question, answers in image.questions:
                if answers:  # the most frequent answer is learnt
                    yield _Asked({"question": question}, Counter(answers).most_common(1)[0][0])
