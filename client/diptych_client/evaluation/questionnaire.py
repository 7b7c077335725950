"""The requests about each image of a dataset for a task, with the true answer if there is one.

Labels become prompts, which a file may name: `car: "car, automobile"` asks for a car, and takes an
automobile as one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diptych_client.evaluation.dataset import Dataset, LabelledImage, TrueObject, TruePhrase
from diptych_client.evaluation.foreign_files import read_yaml
from diptych_client.inputs.files import ImageFile
from diptych_client.long_runs import RunError
from diptych_client.requests import TaskParameters
from diptych_client.results import Item, label_of

MAX_LABELS = 32  # labels per request
ANY_OBJECT = "object"  # the only class of a task without labels
_WITHOUT_LABELS = ("region_proposal",)


@dataclass(frozen=True, slots=True)
class ObjectsTruth:
    """All objects of the image."""

    objects: tuple[TrueObject, ...]


@dataclass(frozen=True, slots=True)
class PhrasesTruth:
    """The object of each phrase."""

    phrases: tuple[TruePhrase, ...]


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
class Prompts:
    """The prompts of each label; the first one is asked."""

    of_label: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def asked(self, label: str) -> str:
        return self.of_label.get(label, (label,))[0]

    def names(self, classes: Sequence[str]) -> "ClassNames":
        """Return the classes by all of their names."""
        class_of = {}
        for label in classes:
            for name in (label, *self.of_label.get(label, ())):
                class_of[name.casefold()] = label
        return ClassNames(tuple(classes), class_of)


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes that count, and the class of each name in lower case."""

    classes: tuple[str, ...]
    class_of: Mapping[str, str]

    def label(self, item: Item) -> str:
        """Return the class of an answered object, or its label if it is not a class."""
        if self.classes == (ANY_OBJECT,):
            return ANY_OBJECT
        return self.class_of.get(label_of(item).casefold(), label_of(item))


def read_prompts(path: Path) -> Prompts:
    """Read a YAML file `label: "prompt, synonym, …"`."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise RunError(f'{path}: expected lines like `car: "car, automobile"`')
    split = {}
    for label, value in document.items():
        names = map(str.strip, str(value).split(","))
        split[str(label)] = tuple(filter(None, names))
    if empty := [label for label, names in split.items() if not names]:
        raise RunError(f"{path}: no prompt for {', '.join(empty)}")
    return Prompts(split)


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """A task over a dataset: its labels complete `given`, the parameters of the command."""

    task: str
    given: TaskParameters
    prompts: Prompts
    dataset_classes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes of the command's labels, else those of the dataset."""
        if self.task in _WITHOUT_LABELS:
            return (ANY_OBJECT,)
        class_of = self.prompts.names(self.dataset_classes).class_of
        given = [class_of.get(each.casefold(), each) for each in self.given.labels or ()]
        return tuple(dict.fromkeys(given)) or self.dataset_classes

    @property
    def names(self) -> ClassNames:
        return self.prompts.names(self.classes)

    def samples(self, dataset: Dataset) -> Iterator[Sample]:
        """Yield the samples of all images."""
        for image in dataset.images:
            yield from self.samples_of(image)

    def samples_of(self, labelled: LabelledImage) -> Iterator[Sample]:
        """Yield one sample, or one for each question."""
        if self.task == "visual_question_answering" and labelled.questions:
            for each in labelled.questions:
                asked = replace(self.given, question=each.question)
                truth = TextsTruth(each.answers) if each.answers else None
                yield Sample(labelled.image, (asked,), truth)
        else:
            requests, truth_of_all = self._requests(labelled)
            yield Sample(labelled.image, tuple(requests), truth_of_all)

    def _requests(self, labelled: LabelledImage) -> tuple[Iterable[TaskParameters], Truth | None]:
        given = self.given
        phrases = tuple(dict.fromkeys(each.phrase for each in labelled.phrases))
        match self.task:
            case "phrase_grounding" if phrases:
                some = _chunks(phrases)
                return (replace(given, phrases=each) for each in some), _phrases(labelled)
            case "instance_segmentation" if phrases:
                return (replace(given, phrase=each) for each in phrases), _phrases(labelled)
            case "instance_segmentation" if labelled.objects is not None and given.phrase is None:
                asked = map(self.prompts.asked, self.classes)
                return (replace(given, phrase=each) for each in asked), self._objects(labelled)
            case "open_vocabulary_detection" if self.classes:
                some = _chunks(tuple(map(self.prompts.asked, self.classes)))
                return (replace(given, labels=each) for each in some), self._objects(labelled)
            case "object_detection" | "region_proposal":
                return (given,), self._objects(labelled)
            case "captioning" if labelled.captions:
                return (given,), TextsTruth(labelled.captions)
            case "ocr" | "ocr_with_regions" | "region_description" if labelled.text is not None:
                region = given.region if labelled.region is None else labelled.region
                return (replace(given, region=region),), TextsTruth((labelled.text,))
        return (given,), None

    def _objects(self, labelled: LabelledImage) -> ObjectsTruth | None:
        """Return the objects of the classes that count."""
        if labelled.objects is None:
            return None
        if self.task in _WITHOUT_LABELS:
            return ObjectsTruth(tuple(replace(each, label=ANY_OBJECT) for each in labelled.objects))
        return ObjectsTruth(tuple(each for each in labelled.objects if each.label in self.classes))


def _phrases(labelled: LabelledImage) -> PhrasesTruth | None:
    has_truth = any(each.box_xyxy or each.segmentation for each in labelled.phrases)
    return PhrasesTruth(labelled.phrases) if has_truth else None


def _chunks(labels: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the labels of one request after the other."""
    for start in range(0, len(labels), MAX_LABELS):
        yield tuple(labels[start : start + MAX_LABELS])
