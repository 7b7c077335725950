"""The requests about each image of a dataset, and their answers in a log.

Labels become prompts, which a file may name. Names as label files have them (`Traffic_Lights`) are
also asked in the forms of ordinary English, and each model is asked in the form that it understands
best. The log has a line for each answer, by a hash of image, task, model, parameters and options.
Only these keys and offsets are in memory.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from diptych_client.clients.async_client import AsyncClient
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    TruePhrase,
    read_yaml,
)
from diptych_client.datasets.inputs import ImageFile, ImageInStore, ImageStore
from diptych_client.datasets.long_runs import AppendLog, FailureLog, RunError, send_all
from diptych_client.datasets.records import QUESTIONS, Job
from diptych_client.errors import DiptychError
from diptych_client.geometry import ImageSize
from diptych_client.json_values import from_json, to_json
from diptych_client.requests import DEFAULT_OPTIONS, AnswerOptions, TaskParameters, non_null_fields
from diptych_client.results import Answer, Instance, Item

MAX_LABELS = 32  # labels per request
ANY_OBJECT = "object"  # the only class of a task without labels
TEXTS = ("ocr", "ocr_with_regions", "region_description")
# the classes are in its requests as the task has them
_OF_CLASSES = ("object_detection", "open_vocabulary_detection", "instance_segmentation")
_WITHOUT_LABELS = ("region_proposal",)
_PLURAL = re.compile(r"(?<=ch|sh|ss)es$|(?<=x)es$|(?<=[^isu])s$")
_KEY_BYTES = 8


ImageRequest = tuple[ImageFile, Job]


@dataclass(frozen=True, slots=True)
class ObjectsTruth:
    """All objects of the image."""

    objects: tuple[TrueObject, ...]


@dataclass(frozen=True, slots=True)
class PhrasesTruth:
    """The object of each phrase."""

    objects: tuple[TruePhrase, ...]


@dataclass(frozen=True, slots=True)
class TextsTruth:
    """The texts of which one would be right."""

    texts: tuple[str, ...]


Truth = ObjectsTruth | PhrasesTruth | TextsTruth


@dataclass(frozen=True, slots=True)
class Sample:
    """The requests about one image, whose answers are joined, and the true answer."""

    image: ImageFile
    requests: tuple[TaskParameters, ...]
    truth: Truth | None

    @property
    def title(self) -> str:
        """Return the image's name with the question or the region, if there is one."""
        first = self.requests[0]
        region = ", ".join(f"{edge:.0f}" for edge in first.region or ())
        return " | ".join(filter(None, (self.image.name, first.question or region)))


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes that count, and the class of each name in lower case."""

    classes: tuple[str, ...]
    class_of: Mapping[str, str]

    def label(self, item: Item) -> str:
        """Return the class of an answered object, or its label if it is not a class."""
        if self.classes == (ANY_OBJECT,):
            return ANY_OBJECT
        return self.class_of.get(item.label.casefold(), item.label)


Prompts = Mapping[str, tuple[str, ...]]  # key: label; the first prompt is sent
Form = Mapping[str, str]  # what is asked instead of a prompt


def forms_of(name: str) -> tuple[str, str, str]:
    """Return the name in lower case, then with spaces, too, then in the singular, too."""
    lower = name.lower()
    spaced = " ".join(lower.replace("_", " ").split())
    singular = re.sub(r"(?<=\w\w)ies$", "y", spaced)
    return lower, spaced or lower, _PLURAL.sub("", singular) or lower


def read_prompts(path: Path | None) -> Prompts:
    """Read a YAML file `label: "prompt, synonym, …"`; the value may also be a list."""
    if path is None:
        return {}
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RunError(f'{path}: expected lines like `car: "car, automobile"`')
    prompts = {}
    for label, value in document.items():
        texts = value if isinstance(value, list) else str(value).split(",")
        names = tuple(filter(None, map(str.strip, map(str, texts))))
        if not names:
            raise RunError(f"{path}: no prompt for {label}")
        prompts[str(label)] = names
    return prompts


@dataclass(slots=True)
class Questionnaire:
    """A task over a dataset, whose labels complete the parameters of the command.

    The classes that count are the command's labels, else those of the dataset. Labels with the same
    prompt, up to case and spaces, count as the first of them: no model can tell them apart.
    """

    task: str
    parameters: TaskParameters
    prompts: Prompts
    dataset_classes: tuple[str, ...]
    names: ClassNames = field(init=False)
    merged: dict[str, str] = field(init=False)  # key: label that counts as another; value: that one

    def __post_init__(self) -> None:
        self._merge_labels()
        class_of = self._names(self.dataset_classes).class_of
        labels = [class_of.get(label.casefold(), label) for label in self.parameters.labels or ()]
        classes = tuple(dict.fromkeys(labels)) or self.dataset_classes
        self.names = self._names((ANY_OBJECT,) if self.task in _WITHOUT_LABELS else classes)
        if self.task in _OF_CLASSES:
            self.parameters = replace(self.parameters, labels=None)

    def _merge_labels(self) -> None:
        self.merged = {}
        label_of_prompt: dict[str, str] = {}
        for label in self.dataset_classes:
            prompt = self.prompts.get(label, (label,))[0]
            words = " ".join(prompt.casefold().split())
            first = label_of_prompt.setdefault(words, label)
            if first != label:
                self.merged[label] = first
        self.dataset_classes = tuple(label_of_prompt.values())

    def _names(self, classes: tuple[str, ...]) -> ClassNames:
        class_of = {}
        for label in reversed(classes):  # the first of two classes with the same form has it
            class_of.update(dict.fromkeys(map(str.casefold, forms_of(label)), label))
        for label in classes:
            for name in (label, *self.prompts.get(label, ())):
                class_of[name.casefold()] = label
        return ClassNames(classes, class_of)

    def forms(self) -> list[Form]:
        """Return the forms in which the classes can be asked: first as written, then up to three.

        A form in which two classes would be one is left out. A label of the prompts has one form.
        """
        forms: list[Form] = [{}]
        if self.task not in ("open_vocabulary_detection", "instance_segmentation"):
            return forms
        labels = [label for label in self.names.classes if label not in self.prompts]
        prompts = {names[0] for names in self.prompts.values()}
        for names in zip(*map(forms_of, labels), strict=True):
            form = {}
            for label, name in zip(labels, names, strict=True):
                if name != label:
                    form[label] = name
            is_distinct = len(set(names) - prompts) == len(labels)
            if is_distinct and form not in forms:
                forms.append(form)
        return forms

    def in_form(self, form: Form) -> dict[str, list[str]]:
        """Return the prompts of all classes, as a file for `read_prompts`."""
        prompts = {}
        for label in self.names.classes:
            prompts[label] = list(self.prompts.get(label, [form.get(label, label)]))
        return prompts

    def _class_prompts(self) -> tuple[str, ...]:
        return tuple(self.prompts.get(label, (label,))[0] for label in self.names.classes)

    def samples(self, dataset: Dataset) -> Iterator[Sample]:
        """Yield the samples of all images: one, or one for each question."""
        for labelled in dataset.images:
            if self.task != QUESTIONS or not labelled.questions:
                requests, truth = self._requests(labelled)
                yield Sample(labelled.image, requests, truth)
                continue
            for question in labelled.questions:
                request = replace(self.parameters, question=question.question)
                texts = TextsTruth(question.answers) if question.answers else None
                yield Sample(labelled.image, (request,), texts)

    def _requests(self, labelled: LabelledImage) -> tuple[tuple[TaskParameters, ...], Truth | None]:
        parameters = self.parameters
        phrases = tuple(dict.fromkeys(true.label for true in labelled.phrases))
        has_objects = labelled.objects is not None
        match self.task:
            case "phrase_grounding" if phrases:
                return self._varied("phrases", _chunks(phrases)), _phrases(labelled)
            case "instance_segmentation" if phrases:
                return self._varied("phrase", phrases), _phrases(labelled)
            case "instance_segmentation" if has_objects and parameters.phrase is None:
                return self._varied("phrase", self._class_prompts()), self._objects(labelled)
            case "open_vocabulary_detection" if self.names.classes:
                chunks = _chunks(self._class_prompts())
                return self._varied("labels", chunks), self._objects(labelled)
            case "object_detection" | "region_proposal":
                return (parameters,), self._objects(labelled)
            case "captioning" if labelled.captions:
                return (parameters,), TextsTruth(labelled.captions)
            case task if task in TEXTS and labelled.text is not None:
                region = parameters.region if labelled.region is None else labelled.region
                return (replace(parameters, region=region),), TextsTruth((labelled.text,))
        return (parameters,), None

    def _varied(self, name: str, values: Iterable[Any]) -> tuple[TaskParameters, ...]:
        """Return the parameters with each value of one of them."""
        return tuple(replace(self.parameters, **{name: value}) for value in values)

    def _objects(self, labelled: LabelledImage) -> ObjectsTruth | None:
        """Return the objects of the classes that count."""
        if labelled.objects is None:
            return None
        objects = []
        for true in labelled.objects:
            label = self.merged.get(true.label, true.label)
            if self.task in _WITHOUT_LABELS:
                objects.append(replace(true, label=ANY_OBJECT))
            elif label in self.names.classes:
                objects.append(replace(true, label=label))
        return ObjectsTruth(tuple(objects))


def of_task(dataset: Dataset, task: str) -> Dataset:
    """Return the dataset without the images that lack the task's labels, if others have them."""
    images = [labelled for labelled in dataset.images if _has_labels(labelled, task)]
    num_others = len(dataset.images) - len(images)
    if not images or not num_others:
        return dataset
    ignored = {**dataset.ignored, f"image without labels of {task}": num_others}
    return replace(dataset, images=images, ignored=ignored)


def _has_labels(labelled: LabelledImage, task: str) -> bool:
    if task in TEXTS:
        return labelled.text is not None
    match task:
        case "captioning":
            return bool(labelled.captions)
        case "visual_question_answering":
            return bool(labelled.questions)
        case "phrase_grounding":
            return bool(labelled.phrases)
        case "instance_segmentation":
            return bool(labelled.phrases) or labelled.objects is not None
    return labelled.objects is not None


def _phrases(labelled: LabelledImage) -> PhrasesTruth | None:
    has_truth = any(true.box_xyxy or true.segmentation for true in labelled.phrases)
    return PhrasesTruth(labelled.phrases) if has_truth else None


def _chunks(labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the labels of one request after the other."""
    for start in range(0, len(labels), MAX_LABELS):
        yield tuple(labels[start : start + MAX_LABELS])


@dataclass(frozen=True, slots=True)
class Prediction:
    """The joined answers of one model to one sample."""

    items: tuple[Item, ...]
    text: str | None
    image: ImageSize
    is_calibrated: bool = False
    is_unfamiliar: bool = False
    embedding: str | None = None  # the image's


class AnswerLog:
    """The answers to one task with the same options, by key; `forms` are those of each model."""

    def __init__(self, log: AppendLog, task: str, options: AnswerOptions) -> None:
        self.task = task
        self.options = options
        self.forms: dict[str, Form] = {}
        self._log = log
        self._offsets = {value["key"]: offset for offset, value in log.values()}

    @classmethod
    @contextmanager
    def open(cls, path: Path, task: str, options: AnswerOptions) -> Iterator[Self]:
        with AppendLog.open(path, "key") as log:
            yield cls(log, task, options)

    def requests(self, samples: Iterable[Sample], model: str) -> Iterator[ImageRequest]:
        form = self.forms.get(model, {})
        for sample in samples:
            for parameters in sample.requests:
                job = Job(self.task, model, _in_form(form, parameters), self.options)
                yield sample.image, job

    def unanswered(self, samples: Iterable[Sample], model: str) -> Iterator[ImageRequest]:
        for image, job in self.requests(samples, model):
            if _key(image, job) not in self._offsets:
                yield image, job

    def append(self, image: ImageFile, job: Job, answer: Answer) -> None:
        key = _key(image, job)
        value = {
            "key": key,
            "image": image.name,
            "model": job.model,
            "parameters": non_null_fields(job.parameters, job.options),
            "answer": to_json(answer),
        }
        self._offsets[key] = self._log.append(value)

    def answers(self, sample: Sample, model: str) -> list[Answer] | None:
        """Return the answers, or None if one is missing."""
        answers = []
        for image, job in self.requests([sample], model):
            offset = self._offsets.get(_key(image, job))
            if offset is None:
                return None
            answers.append(from_json(Answer, self._log.value(offset)["answer"]))
        return answers

    def prediction(self, sample: Sample, model: str) -> Prediction | None:
        """Return the joined answers, or None if one is missing.

        Instances of a request with one phrase are of that phrase, whatever the model calls them.
        """
        answers = self.answers(sample, model)
        if answers is None:
            return None
        items: list[Item] = []
        for answer, parameters in zip(answers, sample.requests, strict=True):
            for item in answer.result.items:
                if isinstance(item, Instance) and parameters.phrase is not None:
                    item = replace(item, label=parameters.phrase)
                items.append(item)
        first = answers[0]
        return Prediction(
            tuple(items),
            first.result.text,
            first.image,
            any(answer.calibrated for answer in answers),
            first.is_unfamiliar,
            first.image_embedding,
        )


def _in_form(form: Form, parameters: TaskParameters) -> TaskParameters:
    labels = parameters.labels
    if labels is not None:
        labels = tuple(form.get(label, label) for label in labels)
    phrase = parameters.phrase
    return replace(parameters, labels=labels, phrase=phrase and form.get(phrase, phrase))


def _key(image: ImageFile, job: Job) -> str:
    text = json.dumps([asdict(image), job.fields()], sort_keys=True)
    return blake2b(text.encode(), digest_size=_KEY_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Collector:
    """Sends requests, and logs answers and failures."""

    log: AnswerLog
    failures: FailureLog
    store: ImageStore
    concurrency: int

    async def collect(
        self, client: AsyncClient, requests: Iterable[ImageRequest], advance: Callable[[], None]
    ) -> None:
        """Raise the first error that affects every image."""

        async def send(request: ImageRequest) -> None:
            image, job = request
            source = ImageInStore(self.store, image)
            answer = await client.predict(
                source, job.task, job.parameters, model=job.model, options=job.options
            )
            self.log.append(image, job, answer)
            advance()

        def record_failure(request: ImageRequest, error: DiptychError) -> None:
            image, job = request
            fields = non_null_fields(job.parameters, DEFAULT_OPTIONS)
            self.failures.append({"image": image.name, "model": job.model, **fields}, error)
            advance()

        await send_all(requests, send, record_failure, self.concurrency)
