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
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator, default_rng
from tqdm import tqdm

from diptych_client.datasets.dataset import (
    LabelledImage,
    NoSuchSplit,
    TrueObject,
    TruePhrase,
)
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import Folder, Opening, Problems, open_images
from diptych_client.datasets.long_runs import RunError
from diptych_client.tools.matching import LabelledBox
from export.errors import ExportError
from imaging.containers import ImageError
from imaging.files import read_image
from tasks.catalog import CatalogEntry
from tasks.errors import TaskError
from tasks.families import FAMILIES
from tasks.florence2.grammar import box_tokens as florence2_box_tokens
from tasks.florence2.prompts import asked_per_prompt
from tasks.paligemma.grammar import box_tokens as paligemma_box_tokens
from tasks.parsing import without_article
from tasks.prompts import Prompt, PromptSegment, join_segments
from tasks.table import MAX_LABELS, TASKS, parse_parameters

_SPLIT = "train"
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
class TuningImage:
    """One image with the labels of one row of a dataset."""

    path: Path
    size_wh: tuple[int, int]  # upright image, px
    labels: LabelledImage

    @property
    def boxes(self) -> list[LabelledBox] | None:
        """The objects to learn; crowds are none. None without labels of objects."""
        objects = self.labels.objects
        return None if objects is None else _boxes(item for item in objects if not item.is_crowd)

    @property
    def phrase_boxes(self) -> list[LabelledBox]:
        return _boxes(self.labels.phrases)


def _boxes(items: Iterable[TrueObject | TruePhrase]) -> list[LabelledBox]:
    """Return the boxes with single spaces in their labels, as a request's labels are read."""
    boxes = []
    for item in items:
        if item.box_xyxy is not None:
            boxes.append(LabelledBox(" ".join(item.label.split()), item.box_xyxy))
    return boxes


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its answer, both in segments that separate labels from locations."""

    image: Path
    prompt: Prompt
    answer: Prompt


# parameters of a request, and the true objects or text of its answer
_Request = tuple[Mapping[str, object], Sequence[LabelledBox] | str]


def read_labels(
    path: Path, work: Path, images: Path | None = None
) -> tuple[list[TuningImage], Problems]:
    """Read the split `train` of a dataset, or one without splits whole; return what is damaged too.

    `work` is the folder for the files of an archive, `images` that of images elsewhere. Raise
    `ExportError` for a missing or malformed dataset, and for one without a readable image.
    """
    problems = Problems()
    try:
        opened = open_images([str(path)], Opening(work, problems))
        try:
            dataset = read_dataset(opened.path, images, _SPLIT, problems)
        except NoSuchSplit:
            dataset = read_dataset(opened.path, images, None, problems)
    except RunError as error:
        raise ExportError(str(error)) from error
    if not isinstance(dataset.store, Folder):
        raise ExportError(f"{path} has its images in Parquet or Arrow files; write them as files")
    sizes = dict[Path, tuple[int, int] | None]()
    labelled = []
    for row in tqdm(dataset.images, desc="reading", unit=" images", leave=False, disable=None):
        file = dataset.store.path / row.image.name
        if file not in sizes:  # decoded once
            sizes[file] = _size_of(file, problems)
        if size_wh := sizes[file]:
            labelled.append(TuningImage(file, size_wh, row))
    if not labelled:
        raise ExportError(f"{path} has no image that can be read: {problems.lines[0]}")
    return labelled, problems


def _size_of(path: Path, problems: Problems) -> tuple[int, int] | None:
    try:
        return read_image(path).size
    except (OSError, ImageError) as error:
        problems.add(path, f"it cannot be read: {error}", "image left out")
        return None


def make_examples(
    entry: CatalogEntry, task_id: str, labelled: Sequence[TuningImage], seed: int
) -> list[list[Example]]:
    """Return the examples of each image with labels of the task; raise `ExportError`."""
    rng = default_rng(seed)
    labels = set[str]()
    for image in labelled:
        labels.update(box.label for box in image.boxes or ())
    classes = sorted(labels)
    by_image = []
    for image in labelled:
        examples = list[Example]()
        for values, truth in _requests(task_id, image, classes, rng):
            examples += _examples(entry, task_id, image, values, truth)
        if examples:
            by_image.append(examples)
    if not by_image:
        raise ExportError(
            f"the dataset has no labels of {task_id}; docs/evaluation.md lists the fields of each"
            " task"
        )
    return by_image


def _examples(
    entry: CatalogEntry,
    task_id: str,
    image: TuningImage,
    values: Mapping[str, object],
    truth: Sequence[LabelledBox] | str,
) -> Iterator[Example]:
    try:
        if not isinstance(truth, str):
            # a label that a request for it could not have is refused
            for box in truth:
                if box.label:
                    named = {"labels": [box.label]}
                    parse_parameters(TASKS["open_vocabulary_detection"], named)
        parameters = parse_parameters(TASKS[task_id], values)
        prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, image.size_wh)
    except TaskError as error:
        raise ExportError(f"{image.path}: {error}") from error
    if isinstance(truth, str):
        segments = [PromptSegment(truth)]
        region = image.labels.region
        if region is not None and entry.family == "florence2":  # repeats the box
            segments.append(_tokens(florence2_box_tokens(region, image.size_wh)))
        yield Example(image.path, prompts[0], join_segments(*segments))
        return
    names = asked_per_prompt(parameters) if len(prompts) > 1 else ((),)
    for prompt, labels in zip(prompts, names, strict=True):
        boxes = [box for box in truth if not labels or box.label in labels]
        answer = _detections(entry, task_id, boxes, image.size_wh)
        yield Example(image.path, prompt, answer)


def _detections(
    entry: CatalogEntry, task_id: str, boxes: Sequence[LabelledBox], size_wh: tuple[int, int]
) -> Prompt:
    """Return labels before (Florence-2) or after locations, joined by ` ; ` (PaliGemma)."""
    segments: list[PromptSegment] = []
    for box in sorted(boxes, key=lambda box: box.box_xyxy[0] + box.box_xyxy[2]):
        if entry.family == "florence2":
            # same label as in the prompt
            is_bare = entry.drops_articles and task_id != "object_detection"
            label = without_article(box.label) if is_bare else box.label
            locations = _tokens(florence2_box_tokens(box.box_xyxy, size_wh))
            segments += (PromptSegment(label), locations)
        else:
            joint = " ; " if segments else ""
            locations = _tokens(paligemma_box_tokens(box.box_xyxy, size_wh))
            segments += (PromptSegment(joint), locations, PromptSegment(f" {box.label}"))
    return join_segments(*segments)


def _tokens(text: str) -> PromptSegment:
    return PromptSegment(text, is_control=True)


def _requests(
    task_id: str, image: TuningImage, classes: Sequence[str], rng: Generator
) -> Iterator[_Request]:
    """Yield the requests of a task that an image's labels answer."""
    labels = image.labels
    boxes = image.boxes
    match task_id:
        case "captioning":
            for caption in labels.captions or ():
                yield {}, caption
        case "object_detection" if boxes is not None:
            yield {}, boxes
        case "open_vocabulary_detection" if boxes is not None:
            # Absent names, as many and at least one, teach the model to leave them out.
            names = sorted({box.label for box in boxes})[:MAX_LABELS]
            others = [name for name in classes if name not in names]
            num_others = min(len(others), max(1, len(names)), MAX_LABELS - len(names))
            if num_others:
                names += rng.choice(others, num_others, replace=False).tolist()
            rng.shuffle(names)
            if names:
                yield {"labels": names}, _named(boxes, names)
        case "phrase_grounding":
            names = list(dict.fromkeys(box.label for box in image.phrase_boxes))
            for start in range(0, len(names), MAX_LABELS):
                phrases = names[start : start + MAX_LABELS]
                yield {"phrases": phrases}, _named(image.phrase_boxes, phrases)
        case "region_proposal" if boxes is not None:
            yield {}, [LabelledBox("", box.box_xyxy) for box in boxes]
        case "ocr" if labels.text is not None and labels.region is None:
            yield {}, labels.text
        case "region_description" if labels.text is not None and labels.region is not None:
            yield {"region": list(labels.region)}, labels.text
        case "visual_question_answering":
            for question in labels.questions:
                if question.answers:  # the most frequent answer is learnt
                    ((answer, _),) = Counter(question.answers).most_common(1)
                    yield {"question": question.question}, answer


def _named(boxes: Sequence[LabelledBox], names: Sequence[str]) -> list[LabelledBox]:
    return [box for box in boxes if box.label in names]
