"""Options that several commands share: the connection, and the task with its parameters.

A field of a dataclass here is an option. Its annotation has the help, and the settings of Typer's
`Option`, if any; `with_options` declares it. `with_config` adds `--config FILE`: a YAML file of
options by name, of which those of `_RARE` are only there. Options of the command line have
precedence.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import wraps
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args

import yaml
from typer import BadParameter, Context, Option

from diptych_client.clients.async_client import AsyncClient
from diptych_client.clients.client import Client
from diptych_client.datasets.formats.writing import DatasetFormat
from diptych_client.datasets.inputs import Opening, Problems
from diptych_client.datasets.long_runs import RunError
from diptych_client.geometry import BoxXyxy
from diptych_client.image_sources import DEFAULT_MAX_PIXELS
from diptych_client.requests import AnswerOptions, TaskParameters, read_api_key, split_list
from diptych_client.results import Task

_URL = "http://localhost:3000"
_LISTED = "repeatable, or comma-separated"
# the titles above options in the help, by the first of each
_PANELS = {
    "labels": "Task parameters",
    "max_new_tokens": "Generation",
    "min_score": "Objects",
    "tiles": "Tiles of large images",
    "labelled": "Guarantee",
}
# options of a command with `--config` that only its file has
_RARE = frozenset(
    (
        *("caption", "phrase", "region", "language", "max_new_tokens", "num_beams", "temperature"),
        *("top_p", "seed", "constrained", "min_precision", "nms_iou", "overlap", "min_object_px"),
        *("iou", "accept_score"),
    )
)
_MAX_CONFIG_BYTES = 1_000_000
_POSITIVE = {"min": 0.001}
_COUNT = {"min": 1}
_SHARE = {"min": 0, "max": 1}
_OPEN = {"min": 0.001, "max": 0.999}  # a share that is neither 0 nor 1
_FOLDER = {"file_okay": False}
_FILE = {"dir_okay": False}
_EXISTS = {"exists": True}


def _named(metavar: str) -> dict[str, Any]:
    """Return settings of an option whose help has the default."""
    return {"metavar": metavar, "show_default": False}


ModelIds = Annotated[
    list[str] | None,
    Option("--models", "--model", help=f"Model ids, {_LISTED}; default: all that offer the task."),
]
Overwrite = Annotated[
    bool, Option("--overwrite", help="Replace files that this command did not write.")
]
Concurrency = Annotated[int, "Number of concurrent requests.", _COUNT]


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The service's URL, and the settings of its clients."""

    url: Annotated[str, "Service [http://localhost:3000]", _named("URL")] = _URL
    api_key_file: Annotated[Path | None, "File with the API key", _named("FILE") | _EXISTS] = None
    timeout_s: Annotated[float, "Deadline of a request [60]", _named("SECONDS") | _POSITIVE] = 60.0
    max_retries: Annotated[int, "Retries of a request [3]", _named("NUMBER") | {"min": 0}] = 3
    max_pixels: Annotated[
        int, "Shrink larger images [50000000]", _named("NUMBER") | {"min": 1000}
    ] = DEFAULT_MAX_PIXELS

    def client(self) -> Client:
        return Client(**self._arguments())

    def async_client(self) -> AsyncClient:
        return AsyncClient(**self._arguments())

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

    strict: Annotated[bool, "Stop at the first damaged label."] = False
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False
    overwrite: Overwrite = False

    def opening(self, out: Path) -> Opening:
        return Opening(out / "input", Problems(self.strict))


def output_folder(out: Path | None, inputs: Sequence[str], suffix: str) -> Path:
    """Return `out`; by default a folder beside the first input, or here for a pattern.

    Raise `RunError` if an image folder and `out` contain each other: output would mix with images.
    """
    path = Path(inputs[0])
    source = path.resolve()
    if out is None:
        base = source if path.exists() else Path.cwd() / "diptych"
        return base.with_name(f"{base.stem}-{suffix}")
    target = out.resolve()
    is_mixed = source.is_relative_to(target) or target.is_relative_to(source)
    if path.is_dir() and is_mixed:
        rule = f"must be outside the image folder {path}, and must not contain it"
        raise RunError(f"--out {out} {rule}")
    return out


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """A task, its parameters and generation options."""

    task: Annotated[str, "Task id, required; `diptych tasks` lists them."] = ""
    labels: Annotated[list[str] | None, f"Labels to detect, {_LISTED}."] = None
    caption: Annotated[str | None, "Text whose phrases are located."] = None
    phrases: Annotated[list[str] | None, f"Phrases to locate, {_LISTED}."] = None
    phrase: Annotated[str | None, "Object to segment."] = None
    region: Annotated[BoxXyxy | None, "Box in pixels.", {"metavar": "X1 Y1 X2 Y2"}] = None
    detail: Annotated[str | None, "Level of detail."] = None
    language: Annotated[str | None, "Language code, such as en."] = None
    question: Annotated[str | None, "Question to answer."] = None
    max_new_tokens: Annotated[int | None, "Maximum number of generated tokens."] = None
    num_beams: Annotated[int | None, "Beams of beam search."] = None
    temperature: Annotated[float | None, "Sampling temperature; 0: greedy."] = None
    top_p: Annotated[float | None, "Probability mass of nucleus sampling."] = None
    seed: Annotated[int | None, "Seed of sampling."] = None
    constrained: Annotated[bool | None, "Generate only well-formed answers."] = None
    min_score: Annotated[float | None, "Minimum score of an object, 0 to 1."] = None
    min_precision: Annotated[float | None, "Proved share of right objects, such as 0.95."] = None
    nms_iou: Annotated[float | None, "Maximum IoU of two objects of one label, 0 to 1."] = None
    tiles: Annotated[str | None, "off, auto, a maximum, or rows and columns as 2x3."] = None
    overlap: Annotated[float | None, "Share of a tile's side that the next one has too."] = None
    min_object_px: Annotated[int | None, "With auto: smallest size of interest, in pixels."] = None

    def parameters(self) -> TaskParameters:
        lists = {"labels": listed(self.labels), "phrases": listed(self.phrases)}
        return TaskParameters(**(self._values(TaskParameters) | lists))

    def answer_options(self) -> AnswerOptions:
        """Return the options of the answer; masks are polygons."""
        return AnswerOptions(**self._values(AnswerOptions))

    def _values(self, kind: type[Any]) -> dict[str, Any]:
        names = set(map(attrgetter("name"), fields(kind))) - {"mask_format", "image_embedding"}
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """Options of `annotate` besides those of the task."""

    model: Annotated[
        list[str] | None, Option("--model", "--models", help="Model id, with --consensus two.")
    ] = None
    consensus: Annotated[bool, "Label with two models; list where they differ for review."] = False
    iou: Annotated[float, "Minimum IoU of two boxes of the same object.", _SHARE] = 0.5
    accept_score: Annotated[float, "With --consensus: minimum score of both boxes.", _SHARE] = 0.0
    dataset_format: Annotated[DatasetFormat, Option("--format", help="Dataset format.")] = "coco"
    val_share: Annotated[float, "About this share of the images is the split val.", _SHARE] = 0.0
    out: Annotated[Path | None, "Output folder; default: INPUT-annotations.", _FOLDER] = None
    concurrency: Concurrency = 8


@dataclass(frozen=True, slots=True)
class GuaranteeOptions:
    """Promises about the accepted labels, and the labelled images that prove them."""

    labelled: Annotated[Path | None, "Images with true labels: accept only what they prove."] = None
    labelled_images: Annotated[Path | None, "Image folder of the file of --labelled."] = None
    split: Annotated[str | None, "Split of the dataset of --labelled."] = None
    max_wrong: Annotated[
        float | None, "Largest share of wrong labels among the accepted; default: 0.05.", _OPEN
    ] = None
    confidence: Annotated[float, "Confidence of the guarantee.", _OPEN] = 0.95
    thresholds: Annotated[Path | None, "Write what is proved here, for the service."] = None
    per_class: Annotated[bool, "Prove --max-wrong for each class."] = False


NO_GUARANTEE = GuaranteeOptions()


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """The part of a labelled dataset that is read, and the names of its classes."""

    images: Annotated[Path | None, "Image folder of a label file.", _FOLDER | _EXISTS] = None
    split: Annotated[str | None, "Split of the dataset, such as val."] = None
    prompts: Annotated[
        Path | None, 'YAML file of prompts: `car: "car, automobile"`.', _FILE | _EXISTS
    ] = None


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of `evaluate` and `review` besides those of the task."""

    models: ModelIds = None
    out: Annotated[Path | None, "Output folder; default: DATASET-TASK.", _FOLDER] = None
    sample: Annotated[int | None, "Number of images, drawn by --seed.", _COUNT] = None
    concurrency: Concurrency = 8
    gallery: Annotated[int, "Number of images in the report.", {"min": 0}] = 200


def offered_task(tasks: Iterable[Task], options: TaskOptions) -> Task:
    name = options.task
    offered = {task.id: task for task in tasks if task.models}
    if not name:
        raise BadParameter(f"missing; offered are {', '.join(offered)}", param_hint="--task")
    if name not in offered:
        raise RunError(f"no model offers task {name!r}; offered are {', '.join(offered)}")
    return offered[name]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option for each of its fields."""
    return _declared(command, has_config=False)


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """Do as `with_options`, and add `--config`, whose file has the rare options."""
    return _declared(command, has_config=True)


def _declared(command: Callable[..., None], has_config: bool) -> Callable[..., None]:
    options: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    rare: dict[str, inspect.Parameter] = {}  # by name
    for parameter in inspect.signature(command).parameters.values():
        if not (is_dataclass(parameter.annotation) and isinstance(parameter.annotation, type)):
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        for option in _group_options(parameter.annotation):
            if has_config and option.name in _RARE:
                rare[option.name] = option
            else:
                options.append(option)
    if has_config:
        options.append(_config_option(options, rare))

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls it with keywords only, by the signature below
        values |= values.pop("config", None) or {}
        for name, group in groups.items():
            names = [field.name for field in fields(group) if field.name in values]
            values[name] = group(**{field: values.pop(field) for field in names})
        command(**values)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


def _group_options(group: type[Any]) -> Iterator[inspect.Parameter]:
    panel = None
    for field in fields(group):
        panel = _PANELS.get(field.name, panel)
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        annotation = field.type
        kind, text, *settings = get_args(annotation)
        if isinstance(text, str):
            flag = f"--{field.name.replace('_', '-')}"
            flags = {bool: [flag], bool | None: [f"{flag}/--un{field.name}"]}.get(kind, [])
            option = Option(*flags, help=text, rich_help_panel=panel, **dict(*settings))
            annotation = Annotated[kind, option]
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )


def _config_option(
    options: Iterable[inspect.Parameter], rare: Mapping[str, inspect.Parameter]
) -> inspect.Parameter:
    """Return `--config`: its value are the rare options of the file; others become defaults."""
    parameter_names: dict[str, str] = {}  # by the words of their flags
    for option in options:
        if option.default is not inspect.Parameter.empty:
            settings = get_args(option.annotation)[1]
            # Typer has the first flag of an annotation in place of a default
            flags = [settings.default, *(settings.param_decls or ())]
            named = [flag for flag in flags if isinstance(flag, str)]
            for flag in named or [option.name]:
                parameter_names[flag.lstrip("-").replace("-", "_")] = option.name

    def read(context: Context, path: Path | None) -> dict[str, Any]:
        defaults = {}
        values = {}
        for name, value in ({} if path is None else _read_config(path)).items():
            if name in parameter_names:
                defaults[parameter_names[name]] = value
            elif name in rare:
                values[name] = _checked(value, rare[name])
            else:
                known = ", ".join(sorted({*parameter_names, *rare}))
                raise BadParameter(f"{path} has {name}; expected any of {known}")
        context.default_map = {**(context.default_map or {}), **defaults}
        return values

    option = Option(
        help="YAML file of options, such as `num_beams: 3`; docs/client.md lists the names.",
        callback=read,
        is_eager=True,
        dir_okay=False,
        exists=True,
    )
    return inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise BadParameter(f"{path} is larger than {_MAX_CONFIG_BYTES:,} bytes")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadParameter(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise BadParameter(f"{path} must have lines like `num_beams: 3`")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _checked(value: Any, option: inspect.Parameter) -> Any:
    """Return the value of a rare option; raise `BadParameter` if it is not of its type or range."""
    annotation, settings = get_args(option.annotation)
    kind = get_args(annotation)[0] if isinstance(annotation, UnionType) else annotation
    if kind == BoxXyxy:
        edges = value if isinstance(value, list) else []
        if len(edges) != 4 or not all(isinstance(edge, int | float) for edge in edges):
            raise BadParameter(f"{option.name} must be [x1, y1, x2, y2], got {value!r}")
        return tuple(float(edge) for edge in edges)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BadParameter(f"{option.name} must be of type {kind.__name__}, got {value!r}")
    if settings.min is not None and not settings.min <= value <= settings.max:
        bounds = f"{settings.min} to {settings.max}"
        raise BadParameter(f"{option.name} must be {bounds}, got {value!r}")
    return value
