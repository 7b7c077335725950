"""Options that several commands share: the connection, and the task with its parameters.

A field of a dataclass here is an option. Its annotation has the help, and the settings of Typer's
`Option`, if any; `with_options` declares it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

from typer import Option

from diptych_client.clients.async_client import AsyncClient
from diptych_client.clients.client import Client
from diptych_client.evaluation.formats.writing import DatasetFormat
from diptych_client.image_sources import DEFAULT_MAX_PIXELS
from diptych_client.inputs import DEFAULT_EVERY_S, Opening, Problems
from diptych_client.long_runs import RunError
from diptych_client.requests import AnswerOptions, TaskParameters, read_api_key, split_list
from diptych_client.results import Model, Task

_LISTED = "repeatable, or comma-separated"
# the titles above options in the help, by the first of each
_PANELS = {
    "labels": "Task parameters",
    "max_new_tokens": "Generation",
    "min_score": "Objects",
    "tiles": "Tiles of large images",
    "labelled": "Guarantee",
}
_SHARE = {"min": 0.001, "max": 0.999}
ModelIds = Annotated[
    list[str] | None,
    Option("--models", "--model", help=f"Model ids, {_LISTED}; default: all that offer the task."),
]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace files that this command did not write.")
]
Concurrency = Annotated[int, "Number of concurrent requests.", {"min": 1}]


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The service's URL, and the settings of its clients."""

    url: Annotated[str, "http(s)://HOST:PORT or grpc(s)://HOST:PORT."] = "http://localhost:3000"
    api_key_file: Annotated[Path | None, "File with the API key.", {"exists": True}] = None
    timeout_s: Annotated[float, "Deadline of a request, retries included.", {"min": 0.001}] = 60.0
    max_retries: Annotated[int, "Maximum number of retries of a request.", {"min": 0}] = 3
    max_pixels: Annotated[
        int, "Send a larger image smaller; its answer is scaled back.", {"min": 1000}
    ] = DEFAULT_MAX_PIXELS

    def client(self) -> Client:
        return Client(**self._arguments())

    def async_client(self) -> AsyncClient:
        return AsyncClient(**self._arguments())

    def models(self) -> tuple[Model, ...]:
        with self.client() as client:
            return client.models()

    def _arguments(self) -> dict[str, Any]:
        arguments = asdict(self)
        path = arguments.pop("api_key_file")
        return arguments | {"api_key": None if path is None else read_api_key(path)}


def listed(values: Iterable[str] | None) -> list[str] | None:
    """Return the elements of comma-separated lists; quotes hold one with a comma."""
    return None if values is None else list(chain.from_iterable(map(split_list, values)))


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How inputs are read, and whether files of others are replaced."""

    every: Annotated[float, "Of a video: seconds between two frames.", {"min": 0.001}] = (
        DEFAULT_EVERY_S
    )
    strict: Annotated[bool, "Stop at the first damaged label or unreadable URL."] = False
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False
    overwrite: Overwrite = False

    def opening(self, out: Path) -> Opening:
        return Opening(out / "input", Problems(self.strict), self.every)


def output_folder(out: Path | None, inputs: Sequence[str], suffix: str) -> Path:
    """Return `out`; by default a folder beside the first input, or here for a URL or a pattern."""
    if out is not None:
        return out
    path = Path(inputs[0])
    base = path.resolve() if path.exists() else Path.cwd() / "diptych"
    return base.with_name(f"{base.stem}-{suffix}")


def check_folders(images: Path, out: Path) -> None:
    """Raise `RunError` if one folder contains the other: output would mix with images."""
    source = images.resolve()
    target = out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        rule = f"must be outside the image folder {images}, and must not contain it"
        raise RunError(f"--out {out} {rule}")


def missing_extra(command: str, error: ImportError, extra: str) -> RunError:
    return RunError(f"{command} needs {error.name}: pip install 'diptych-client[{extra}]'")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """A task, its parameters and generation options."""

    task: Annotated[str, "Task id; `diptych tasks` lists them."]
    labels: Annotated[list[str] | None, f"Labels to detect, {_LISTED}."] = None
    caption: Annotated[str | None, "Text whose phrases are located."] = None
    phrases: Annotated[list[str] | None, f"Phrases to locate, {_LISTED}."] = None
    phrase: Annotated[str | None, "Object to segment."] = None
    region: Annotated[
        tuple[float, float, float, float] | None, "Box in pixels.", {"metavar": "X1 Y1 X2 Y2"}
    ] = None
    detail: Annotated[str | None, "Level of detail."] = None
    language: Annotated[str | None, "Language code, such as en."] = None
    question: Annotated[str | None, "Question to answer."] = None
    max_new_tokens: Annotated[int | None, "Maximum number of generated tokens."] = None
    num_beams: Annotated[int | None, "Beams of beam search."] = None
    temperature: Annotated[float | None, "Sampling temperature; 0: greedy."] = None
    top_p: Annotated[float | None, "Probability mass of nucleus sampling."] = None
    seed: Annotated[int | None, "Seed of sampling."] = None
    constrained: Annotated[
        bool | None,
        Option(
            "--constrained/--unconstrained",
            help="Generate only well-formed answers.",
            rich_help_panel="Generation",
        ),
    ] = None
    min_score: Annotated[float | None, "Minimum score of an object, 0 to 1."] = None
    min_precision: Annotated[
        float | None, "Only objects that are proved to be right so often, such as 0.95."
    ] = None
    nms_iou: Annotated[
        float | None,
        "Drop objects that overlap a better one of the same label by more than this IoU, 0 to 1.",
    ] = None
    tiles: Annotated[str | None, "off, auto, the maximum of tiles, or rows and columns as 2x3."] = (
        None
    )
    overlap: Annotated[float | None, "Share of a tile's side that the next one has too."] = None
    min_object_px: Annotated[
        int | None, "With auto: size of the smallest thing of interest in pixels."
    ] = None

    def parameters(self) -> TaskParameters:
        values = {field.name: getattr(self, field.name) for field in fields(TaskParameters)}
        lists = {"labels": listed(self.labels), "phrases": listed(self.phrases)}
        return TaskParameters(**(values | lists))

    def answer_options(self) -> AnswerOptions:
        """Return the options of the answer; masks are polygons."""
        names = {field.name for field in fields(AnswerOptions)} - {"mask_format"}
        return AnswerOptions(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """Options of `annotate` besides those of the task."""

    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "--models",
            help="Model id, with --consensus two; default: the first that offer the task.",
        ),
    ] = None
    consensus: Annotated[bool, "Label with two models; list what they disagree on for review."] = (
        False
    )
    iou: Annotated[
        float,
        "Minimum IoU of the same object: of two models' boxes, of a right box and the true one.",
        {"min": 0, "max": 1},
    ] = 0.5
    accept_score: Annotated[
        float,
        "With --consensus: minimum score of both boxes; others go to review.",
        {"min": 0, "max": 1},
    ] = 0.0
    dataset_format: Annotated[DatasetFormat, Option("--format", help="Dataset format.")] = (
        DatasetFormat.coco
    )
    out: Annotated[
        Path | None, "Output folder; default: INPUT-annotations.", {"file_okay": False}
    ] = None
    concurrency: Concurrency = 8


@dataclass(frozen=True, slots=True)
class GuaranteeOptions:
    """Promises about the accepted labels, and the labelled images that prove them."""

    labelled: Annotated[
        Path | None,
        "Images with true labels, in any format of `evaluate`: accept only what they prove to be"
        " right.",
    ] = None
    labelled_images: Annotated[Path | None, "Folder of the images of the file of --labelled."] = (
        None
    )
    max_wrong: Annotated[
        float | None, "Largest share of wrong labels among the accepted; default: 0.05.", _SHARE
    ] = None
    confidence: Annotated[float, "Confidence of the guarantee.", _SHARE] = 0.95
    max_missed: Annotated[
        float | None, "Largest share of objects in neither the dataset nor the review list.", _SHARE
    ] = None
    suggest: Annotated[
        int | None, "Write so many images for a person to label next.", {"min": 1}
    ] = None
    reviewed: Annotated[Path | None, "A person's labels of suggested images, which are final."] = (
        None
    )
    thresholds: Annotated[
        Path | None, "Also write what is proved, for DIPTYCH_CALIBRATION of the service."
    ] = None
    max_cer: Annotated[float, "Largest character error rate of a right text; 0: equal."] = 0.0


NO_GUARANTEE = GuaranteeOptions()


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of `evaluate` besides those of the task."""

    models: ModelIds = None
    out: Annotated[
        Path | None, "Output folder; default: DATASET-TASK beside it.", {"file_okay": False}
    ] = None
    images: Annotated[
        Path | None, "Folder of the images of a label file.", {"exists": True, "file_okay": False}
    ] = None
    split: Annotated[str | None, "Split of the dataset, such as val."] = None
    prompts: Annotated[
        Path | None,
        'YAML file of prompts: `car: "car, automobile"`.',
        {"exists": True, "dir_okay": False},
    ] = None
    sample: Annotated[int | None, "Number of images, drawn by --seed.", {"min": 1}] = None
    until_decided: Annotated[
        bool, "Ask two models image by image, in a random order, until one is known to be better."
    ] = False
    equal_within: Annotated[
        float | None,
        "With --until-decided: also stop when the mean errors are known to differ by less than so"
        " many hundredths.",
        {"min": 0.01, "max": 99},
    ] = None
    without_tiles: Annotated[
        bool, "With --tiles: also ask each model without tiles, and compare, by size too."
    ] = False
    concurrency: Concurrency = 8
    gallery: Annotated[int, "Number of images in the report.", {"min": 0}] = 200
    calibrate: Annotated[
        Path | None, "Fit the probability of the scores and write it here.", {"dir_okay": False}
    ] = None


def offered_task(tasks: Iterable[Task], name: str) -> Task:
    offered = {task.id: task for task in tasks if task.models}
    if name not in offered:
        raise RunError(f"no model offers task {name!r}; offered are {', '.join(offered)}")
    return offered[name]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option for each of its fields."""
    options: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type):
            groups[parameter.name] = parameter.annotation
            options += _options_of(parameter.annotation)
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls it with keywords only, by the signature below
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


def _options_of(group: type[Any]) -> Iterator[inspect.Parameter]:
    panel = None
    for field in fields(group):
        panel = _PANELS.get(field.name, panel)
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        annotation = field.type
        kind, text, *settings = get_args(annotation)
        if isinstance(text, str):
            flags = [f"--{field.name.replace('_', '-')}"] if kind is bool else []  # no --no-NAME
            option = Option(*flags, help=text, rich_help_panel=panel, **dict(*settings))
            annotation = Annotated[kind, option]
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
