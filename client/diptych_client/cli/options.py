"""Options that several commands share: the connection, and the task with its parameters."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from diptych_client.clients.async_client import AsyncClient
from diptych_client.clients.client import Client
from diptych_client.evaluation.formats.writing import DatasetFormat
from diptych_client.inputs import DEFAULT_EVERY_S, Opening, Problems
from diptych_client.long_runs import RunError
from diptych_client.requests import AnswerOptions, TaskParameters, split_list
from diptych_client.results import Model, Task

_LISTED = "repeatable, or comma-separated"
ModelIds = Annotated[
    list[str] | None,
    Option("--models", "--model", help=f"Model ids, {_LISTED}; default: all that offer the task."),
]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace files that this command did not write.")
]
Concurrency = Annotated[int, Option(help="Number of concurrent requests.", min=1)]


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The service's URL, and the settings of its clients."""

    url: str
    api_key: str | None
    timeout_s: float
    max_retries: int
    max_pixels: int | None = None

    def client(self) -> Client:
        return Client(self.url, **self._settings())

    def models(self) -> tuple[Model, ...]:
        with self.client() as client:
            return client.models()

    def async_client(self) -> AsyncClient:
        return AsyncClient(self.url, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "api_key": self.api_key,
            "timeout_s": self.timeout_s,
            "max_retries": self.max_retries,
            "max_pixels": self.max_pixels,
        }


def listed(values: Iterable[str] | None) -> list[str] | None:
    """Return the elements of comma-separated lists; quotes hold one with a comma."""
    return None if values is None else list(chain.from_iterable(map(split_list, values)))


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How inputs are read, and whether files of others are replaced."""

    every: Annotated[float, Option(help="Of a video: seconds between two frames.", min=0.001)] = (
        DEFAULT_EVERY_S
    )
    strict: Annotated[
        bool, Option("--strict", help="Stop at the first damaged label or unreadable URL.")
    ] = False
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False
    overwrite: Overwrite = False

    def opening(self, out: Path) -> Opening:
        """Return how an input is opened; archives, videos and URLs are unpacked in `out`."""
        return Opening(out / "input", Problems(self.strict), self.every)


def output_folder(out: Path | None, inputs: Sequence[str], suffix: str) -> Path:
    """Return `out`; by default a folder beside the first input, or here for a URL or a pattern."""
    if out is not None:
        return out
    path = Path(inputs[0])
    named = path.resolve() if path.exists() else Path.cwd() / "diptych"
    return named.with_name(f"{named.stem}-{suffix}")


def _parameter(text: str, metavar: str | None = None) -> Any:
    return Option(help=text, metavar=metavar, rich_help_panel="Task parameters")


def _generation(text: str, *flags: str) -> Any:
    return Option(*flags, help=text, rich_help_panel="Generation")


def _objects(text: str) -> Any:
    return Option(help=text, rich_help_panel="Objects")


def _tiling(text: str) -> Any:
    return Option(help=text, rich_help_panel="Tiles of large images")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """A task, its parameters and generation options; every field is a command line option."""

    task: Annotated[str, Option(help="Task id; `diptych tasks` lists them.")]
    labels: Annotated[list[str] | None, _parameter(f"Labels to detect, {_LISTED}.")] = None
    caption: Annotated[str | None, _parameter("Text whose phrases are located.")] = None
    phrases: Annotated[list[str] | None, _parameter(f"Phrases to locate, {_LISTED}.")] = None
    phrase: Annotated[str | None, _parameter("Object to segment.")] = None
    region: Annotated[
        tuple[float, float, float, float] | None, _parameter("Box in pixels.", "X1 Y1 X2 Y2")
    ] = None
    detail: Annotated[str | None, _parameter("Level of detail.")] = None
    language: Annotated[str | None, _parameter("Language code, such as en.")] = None
    question: Annotated[str | None, _parameter("Question to answer.")] = None
    max_new_tokens: Annotated[int | None, _generation("Maximum number of generated tokens.")] = None
    num_beams: Annotated[int | None, _generation("Beams of beam search.")] = None
    temperature: Annotated[float | None, _generation("Sampling temperature; 0: greedy.")] = None
    top_p: Annotated[float | None, _generation("Probability mass of nucleus sampling.")] = None
    seed: Annotated[int | None, _generation("Seed of sampling.")] = None
    constrained: Annotated[
        bool | None,
        _generation("Generate only well-formed answers.", "--constrained/--unconstrained"),
    ] = None
    min_score: Annotated[float | None, _objects("Minimum score of an object, 0 to 1.")] = None
    min_precision: Annotated[
        float | None, _objects("Only objects that are proved to be right so often, such as 0.95.")
    ] = None
    nms_iou: Annotated[
        float | None,
        _objects(
            "Drop objects that overlap a better one of the same label by more than this IoU, 0 to"
            " 1."
        ),
    ] = None
    tiles: Annotated[
        str | None, _tiling("off, auto, the maximum of tiles, or rows and columns as 2x3.")
    ] = None
    overlap: Annotated[
        float | None, _tiling("Share of a tile's side that the next one has too.")
    ] = None
    min_object_px: Annotated[
        int | None, _tiling("With auto: size of the smallest thing of interest in pixels.")
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
    consensus: Annotated[
        bool,
        Option("--consensus", help="Label with two models; list what they disagree on for review."),
    ] = False
    iou: Annotated[
        float,
        Option(
            help="Minimum IoU of the same object: of two models' boxes, of a right box and the true"
            " one.",
            min=0,
            max=1,
        ),
    ] = 0.5
    accept_score: Annotated[
        float,
        Option(
            help="With --consensus: minimum score of both boxes; others go to review.", min=0, max=1
        ),
    ] = 0.0
    dataset_format: Annotated[DatasetFormat, Option("--format", help="Dataset format.")] = (
        DatasetFormat.coco
    )
    out: Annotated[
        Path | None,
        Option(help="Output folder; default: INPUT-annotations.", file_okay=False),
    ] = None
    concurrency: Concurrency = 8


def _guarantee(text: str) -> Any:
    return Option(help=text, rich_help_panel="Guarantee")


def _share(text: str) -> Any:
    return Option(help=text, min=0.001, max=0.999, rich_help_panel="Guarantee")


@dataclass(frozen=True, slots=True)
class GuaranteeOptions:
    """Promises about the accepted labels, and the labelled images that prove them."""

    labelled: Annotated[
        Path | None,
        _guarantee(
            "Images with true labels, in any format of `evaluate`: accept only what they prove to"
            " be right."
        ),
    ] = None
    labelled_images: Annotated[
        Path | None, _guarantee("Folder of the images of the file of --labelled.")
    ] = None
    max_wrong: Annotated[
        float | None,
        _share("Largest share of wrong labels among the accepted; default: 0.05."),
    ] = None
    confidence: Annotated[float, _share("Confidence of the guarantee.")] = 0.95
    max_missed: Annotated[
        float | None,
        _share("Largest share of objects in neither the dataset nor the review list."),
    ] = None
    suggest: Annotated[
        int | None,
        Option(
            help="Write so many images for a person to label next.",
            min=1,
            rich_help_panel="Guarantee",
        ),
    ] = None
    reviewed: Annotated[
        Path | None, _guarantee("A person's labels of suggested images, which are final.")
    ] = None
    thresholds: Annotated[
        Path | None,
        _guarantee("Also write what is proved, for DIPTYCH_CALIBRATION of the service."),
    ] = None
    max_cer: Annotated[
        float, _guarantee("Largest character error rate of a right text; 0: equal.")
    ] = 0.0


NO_GUARANTEE = GuaranteeOptions()


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of `evaluate` besides those of the task."""

    models: ModelIds = None
    out: Annotated[
        Path | None,
        Option(help="Output folder; default: DATASET-TASK beside it.", file_okay=False),
    ] = None
    images: Annotated[
        Path | None,
        Option(help="Folder of the images of a label file.", exists=True, file_okay=False),
    ] = None
    split: Annotated[str | None, Option(help="Split of the dataset, such as val.")] = None
    prompts: Annotated[
        Path | None,
        Option(help='YAML file of prompts: `car: "car, automobile"`.', exists=True, dir_okay=False),
    ] = None
    sample: Annotated[int | None, Option(help="Number of images, drawn by --seed.", min=1)] = None
    until_decided: Annotated[
        bool,
        Option(
            "--until-decided",
            help="Ask two models image by image, in a random order, until one is known to be"
            " better.",
        ),
    ] = False
    equal_within: Annotated[
        float | None,
        Option(
            help="With --until-decided: also stop when the mean errors are known to differ by less"
            " than so many hundredths.",
            min=0.01,
            max=99,
        ),
    ] = None
    without_tiles: Annotated[
        bool,
        Option(
            "--without-tiles",
            help="With --tiles: also ask each model without tiles, and compare, by size too.",
        ),
    ] = False
    concurrency: Concurrency = 8
    gallery: Annotated[int, Option(help="Number of images in the report.", min=0)] = 200
    calibrate: Annotated[
        Path | None,
        Option(help="Fit the probability of the scores and write it here.", dir_okay=False),
    ] = None


def offered_task(tasks: Iterable[Task], name: str) -> Task:
    """Return the task of this id; raise `RunError` if no model offers it."""
    offered = {task.id: task for task in tasks if task.models}
    if name not in offered:
        raise RunError(f"no model offers task {name!r}; offered are {', '.join(offered)}")
    return offered[name]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option for each of its fields."""
    parameters = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    for field in chain.from_iterable(map(fields, groups.values())):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        option = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
        parameters.append(option.replace(annotation=field.type))

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls it with keywords only, by the signature below
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
