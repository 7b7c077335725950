"""The commands of `diptych`; recipes of `analyze` are YAML files of steps.

In a recipe `labels: given` are those of the command line, `models: all` the models that offer the
step's task.
"""

import asyncio
import atexit
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated, Any, get_args

import typer
import yaml
from PIL import Image
from PIL.Image import DecompressionBombError
from rich.console import Console, Group, RenderableType
from typer import Argument, BadParameter, Option
from typer.core import TyperGroup

from diptych_client.conversion import MAX_CONVERTED_BYTES, converted_name
from diptych_client.datasets.inputs import ImageInStore, Opening, Problems, open_images
from diptych_client.datasets.long_runs import RunError
from diptych_client.drawing import draw_answer, draw_comparison, open_upright
from diptych_client.errors import DiptychError, Unauthorized
from diptych_client.json_values import to_json
from diptych_client.requests import TaskId, TaskParameters
from diptych_client.results import Answer, Task
from diptych_client.tools.cli import terminal
from diptych_client.tools.cli.annotate import AnnotationRun
from diptych_client.tools.cli.options import (
    AnnotateOptions,
    ConnectionOptions,
    DatasetOptions,
    GuaranteeOptions,
    InputOptions,
    ModelIds,
    Overwrite,
    ReportOptions,
    TaskOptions,
    listed,
    offered_task,
    with_config,
    with_options,
)


class _Commands(TyperGroup):
    """The commands; options of all commands may follow a command's name, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        common: dict[str, Any] = {}
        _hide_types_of_flags(self.get_params(ctx))
        for parameter in self.params:
            common |= dict.fromkeys(parameter.opts, parameter)
        first: list[str] = []
        others: list[str] = []
        words = iter(args)
        for word in words:
            name, has_value, _ = word.partition("=")
            if name not in common:
                others.append(word)
            elif has_value or common[name].is_flag:
                first.append(word)
            else:
                first += [word, *islice(words, 1)]
        return super().parse_args(ctx, first + others)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        _hide_types_of_flags([] if command is None else command.get_params(ctx))
        return command


def _hide_types_of_flags(parameters: Iterable[Any]) -> None:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# the titles above commands in the help
_ASK = "Ask"
_LABEL = "Label"
_MEASURE = "Measure"
_CONNECT = "Connect"


def image_name(text: str) -> str:
    """Return the name, for `-` that of a copy of the standard input until the command ends."""
    if text != "-":
        return text
    folder = mkdtemp(prefix="diptych-")
    atexit.register(rmtree, folder, ignore_errors=True)
    path = Path(folder) / "stdin"
    path.write_bytes(sys.stdin.buffer.read(MAX_CONVERTED_BYTES))
    return str(path)


_INPUTS = "Images, a folder, a pattern or an archive"
ImagePath = Annotated[
    Path,
    Argument(
        help="An image, a page as `scan.pdf#page=2`, or `-`.",
        parser=lambda text: Path(image_name(text)),
    ),
]
ImageInputs = Annotated[list[str], Argument(help=f"{_INPUTS}, or `-`.", parser=image_name)]
Inputs = Annotated[list[str], Argument(help=f"{_INPUTS}.")]
DatasetPath = Annotated[
    list[str], Argument(help="A folder, file or archive with labels; or images.")
]
Draw = Annotated[Path | None, Option(help="Save the drawn answer here, of many images a folder.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
ModelId = Annotated[
    str | None, Option("--model", "--models", help="Model id; default: the first with the task.")
]
_RECIPES = Path(__file__).parents[2] / "recipes"
_MAX_OPENED_PIXELS = 1_000_000_000
_FAILURES = (DiptychError, RunError, OSError, ValueError, yaml.YAMLError, DecompressionBombError)


def main() -> None:
    """Run a command. Exit status: 1 failed, 2 wrong usage, 130 interrupted."""
    Image.MAX_IMAGE_PIXELS = _MAX_OPENED_PIXELS  # its own limit is for servers
    try:
        app(prog_name="diptych")
    except ImportError as error:
        terminal.echo(f"error: {error}; docs/client.md lists the extras", is_error=True)
    except Unauthorized as error:
        terminal.echo(f"error: {error}; give the key by --api-key-file FILE", is_error=True)
    except _FAILURES as error:
        message = str(error).replace("\n", "\\n")  # one line
        terminal.echo(f"error: {message}", is_error=True)
    sys.exit(1)


def _show_version(is_given: bool) -> None:
    if is_given:
        terminal.echo(f"diptych {version('diptych-client')}")
        raise typer.Exit


@app.callback(epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.")
@with_options
def connect(
    context: typer.Context,
    connection: ConnectionOptions,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print no notes and no bar.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Print each request, too.")] = False,
    _: Annotated[
        bool,
        Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the version.",
            metavar="",
        ),
    ] = False,
) -> None:
    """Run vision tasks on a Diptych service."""
    terminal.set_verbosity(quiet, verbose)
    context.obj = connection


@app.command(rich_help_panel=_ASK)
@with_options
def predict(
    context: typer.Context,
    inputs: ImageInputs,
    task_options: TaskOptions,
    input_options: InputOptions,
    model: ModelId = None,
    draw: Draw = None,
) -> None:
    """Run a task on images with one model."""
    with TemporaryDirectory(prefix="diptych-") as work, context.obj.client() as client:
        if not task_options.task:
            offered_task(client.tasks(), task_options)
        opening = input_options.opening(Path(work))
        opened = open_images(inputs, opening)
        store, images = opened.images(opening.problems)
        terminal.note_problems(opening.problems, None)
        is_one = len(images) == 1 and opened.files is not None
        drawings: list[Path | None] = [draw] * len(images)
        if draw is not None and not is_one:
            drawings = [draw / converted_name(image.name) for image in images]
        check_drawings(drawings, input_options.overwrite)
        answers = client.predict_many(
            [ImageInStore(store, image) for image in images],
            task_options.task,
            task_options.parameters(),
            model=model,
            options=task_options.answer_options(),
            progress=not is_one and sys.stderr.isatty() and not sys.stdout.isatty(),
        )
        num_failed = 0
        for image, answer, drawing in zip(images, answers, drawings, strict=True):
            if isinstance(answer, Answer) and drawing is not None:
                picture = open_upright(store.path / image.name)
                save_drawing(draw_answer(picture, answer), drawing)
            if not is_one:
                num_failed += print_row(image.name, answer, input_options.as_json)
            elif isinstance(answer, Answer):
                _print(input_options.as_json, answer, terminal.answer_view(answer))
            else:
                raise answer
    raise typer.Exit(1 if num_failed else 0)


def print_row(name: str, answer: Answer | DiptychError, as_json: bool) -> int:
    """Print the answer or the error of one of several images; return the number of errors."""
    row: dict[str, Any] = {"image": name}
    if isinstance(answer, Answer):
        row["answer"] = to_json(answer)
    else:
        row["error"] = to_json(answer.detail)
        terminal.echo(f"error: {name}: {answer}", is_error=True)
    if as_json:
        terminal.echo(json.dumps(row, ensure_ascii=False))
    elif isinstance(answer, Answer):
        terminal.echo(f"\n{name}")
        Console().print(terminal.answer_view(answer))
    return int("error" in row)


@app.command(rich_help_panel=_ASK)
@with_options
def compare(
    context: typer.Context,
    image: ImagePath,
    task_options: TaskOptions,
    models: ModelIds = None,
    draw: Draw = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a task on an image with several models, side by side."""
    check_drawings([draw], overwrite)
    with context.obj.client() as client:
        if not task_options.task:
            offered_task(client.tasks(), task_options)
        comparison = client.compare(
            image,
            task_options.task,
            task_options.parameters(),
            models=listed(models),
            options=task_options.answer_options(),
        )
    _print(as_json, comparison, Group(*map(terminal.answer_view, comparison.answers)))
    if draw is not None:
        save_drawing(draw_comparison(open_upright(image), comparison), draw)


@app.command(rich_help_panel=_ASK)
def analyze(
    context: typer.Context,
    image: ImagePath,
    recipe: Annotated[
        str, Option(help="A recipe of `diptych recipes`, or a YAML file of steps.")
    ] = "describe-everything",
    label: Annotated[list[str] | None, Option(help="Label, for recipes with labels.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask many questions about an image, by a recipe."""
    with context.obj.client() as client:
        steps = read_recipe(recipe).filled(label or (), client.tasks())
        analysis = client.analyze(image, steps)
    _print(as_json, analysis, terminal.analysis_view(analysis))


@app.command("recipes", rich_help_panel=_ASK)
def list_recipes() -> None:
    """List the recipes of `analyze`."""
    for recipe in shipped_recipes():
        terminal.echo(f"{recipe.name}: {recipe.description}")


@app.command(rich_help_panel=_LABEL)
@with_config
def annotate(
    context: typer.Context,
    inputs: Inputs,
    options: AnnotateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    guarantee: GuaranteeOptions,
) -> None:
    """Label images and write a dataset.

    The same command resumes an interrupted run. Each answer is appended to journal.jsonl when it
    arrives; the dataset is written from the journal at the end. failures.jsonl lists the images
    that failed and their errors; the next run retries them.
    """
    run = AnnotationRun(context.obj, inputs, options, input_options, task_options, guarantee)
    raise typer.Exit(1 if run.run() else 0)


@app.command(rich_help_panel=_MEASURE)
@with_config
def evaluate(
    context: typer.Context,
    dataset: DatasetPath,
    options: ReportOptions,
    dataset_options: DatasetOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    calibrate: Annotated[
        Path | None, Option(help="Fit probabilities of scores, write them here.", dir_okay=False)
    ] = None,
) -> None:
    """Measure models on a dataset, or how far they agree.

    It writes a report; without labels it compares the models. The same command resumes an
    interrupted run: answers are kept in answers.jsonl. failures.jsonl lists the requests that
    failed; the next run retries them.
    """
    from diptych_client.tools.cli.evaluate import EvaluationRun

    parts = (dataset, options, dataset_options, input_options, task_options)
    raise typer.Exit(1 if EvaluationRun(context.obj, *parts, calibrate).run() else 0)


@app.command(rich_help_panel=_LABEL)
@with_config
def review(
    context: typer.Context,
    dataset: DatasetPath,
    options: ReportOptions,
    dataset_options: DatasetOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    merge: Annotated[Path | None, Option(help="Write DATASET with labels of this export.")] = None,
) -> None:
    """Rank images by how much models contradict their labels.

    As `evaluate`, it resumes, and writes a report: its images are the most suspect ones, as in
    review.json (COCO, for CVAT) and label_studio.json. `--merge` takes a person's labels back.
    """
    from diptych_client.tools.cli.evaluate import EvaluationRun

    parts = (dataset, options, dataset_options, input_options, task_options)
    run = EvaluationRun(context.obj, *parts, is_review=True)
    if merge is None:
        raise typer.Exit(1 if run.run() else 0)
    run.merge(merge)


@app.command(rich_help_panel=_LABEL)
@with_options
def check(
    dataset: DatasetPath,
    dataset_options: DatasetOptions,
    task: Annotated[str, Option(help="Task id: show the requests, too.")] = "",
    strict: Annotated[bool, Option("--strict", help="Stop at the first damaged label.")] = False,
) -> None:
    """Print what is read of a dataset, and the plan to label like it.

    With `--task` it is a file for `--config` of `annotate` and `evaluate`. It needs no service.
    """
    from diptych_client.tools.cli.evaluate import plan_lines, read_input
    from diptych_client.tools.questions import Questionnaire, of_task, read_prompts

    tasks = list(chain.from_iterable(map(get_args, get_args(TaskId))))
    if task and task not in tasks:
        known = ", ".join(tasks)
        raise BadParameter(f"expected one of {known}, got {task!r}", param_hint="--task")
    with TemporaryDirectory(prefix="diptych-") as work:
        opening = Opening(Path(work) / "input", Problems(strict))
        labelled = read_input(dataset, dataset_options, opening)
        if task:
            labelled = of_task(labelled, task)
        terminal.note_problems(opening.problems, None)
        prompts = read_prompts(dataset_options.prompts)
        questionnaire = Questionnaire(task, TaskParameters(), prompts, labelled.classes)
        samples = list(questionnaire.samples(labelled))
        for line in plan_lines(labelled, questionnaire, samples):
            terminal.echo(f"# {line}")
        if task:
            plan: dict[str, Any] = {"task": task}
            if task == "open_vocabulary_detection":
                plan["labels"] = list(questionnaire.names.classes)
            terminal.echo(yaml.safe_dump(plan, sort_keys=False, allow_unicode=True).rstrip())


@app.command(rich_help_panel=_MEASURE)
def locate(
    context: typer.Context,
    model: Annotated[str, Argument(help="Model id.")],
    images: Annotated[int, Option(help="Number of drawn images.", min=50, max=5000)] = 60,
) -> None:
    """Check on drawn scenes where a model's boxes land."""
    from diptych_client.tools.locating import LABELS, drawn_scenes, located

    with context.obj.client() as client:
        answers = client.predict_many(
            (scene.image for scene in drawn_scenes(images)),
            "open_vocabulary_detection",
            TaskParameters(labels=LABELS),
            model=model,
            progress=sys.stderr.isatty(),
        )
        location = located(drawn_scenes(images), answers)
    terminal.echo(f"{model}: {location}")
    raise typer.Exit(1 if location.problem else 0)


@app.command("models", rich_help_panel=_CONNECT)
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the served models."""
    with context.obj.client() as client:
        models = client.models()
    _print(as_json, models, terminal.models_view(models))


@app.command("tasks", rich_help_panel=_CONNECT)
def list_tasks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the tasks, their parameters and models."""
    with context.obj.client() as client:
        tasks = client.tasks()
    _print(as_json, tasks, terminal.tasks_view(tasks))


@app.command("mcp", rich_help_panel=_CONNECT)
def serve_mcp(context: typer.Context) -> None:
    """Serve the tasks as tools of the Model Context Protocol.

    It reads stdin and writes stdout, as agents start it.
    """
    from diptych_client.integrations.mcp_server import serve

    asyncio.run(serve(context.obj.async_client))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps as a file has them."""

    name: str
    description: str
    steps: tuple[dict[str, Any], ...]

    def filled(self, labels: Sequence[str], tasks: Iterable[Task]) -> list[dict[str, Any]]:
        """Return the steps for a request; raise `RunError` if labels are missing."""
        models = {task.id: list(task.models) for task in tasks}
        steps = []
        for step in map(dict, self.steps):
            if step.get("labels") == "given":
                step["labels"] = list(labels)
                if not labels:
                    raise RunError(f"the recipe {self.name} needs labels: give --label for each")
            if step.get("models") == "all":
                step["models"] = models.get(str(step.get("task")), [])
            steps.append(step)
        return steps


def shipped_recipes() -> list[Recipe]:
    return [read_recipe(path.stem) for path in sorted(_RECIPES.glob("*.yaml"))]


def read_recipe(name_or_path: str) -> Recipe:
    shipped = _RECIPES / f"{name_or_path}.yaml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = document.get("steps") if isinstance(document, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RunError(f"the recipe {path} must have steps: a list of objects")
    return Recipe(path.stem, str(document.get("description", "")), tuple(steps))


def check_drawings(paths: Iterable[Path | None], overwrite: bool) -> None:
    for path in filter(None, paths):
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; give --overwrite to replace it")
        if path.suffix.lower() not in Image.registered_extensions():
            raise RunError(f"--draw {path}: the name must end as that of a picture, such as .png")


def save_drawing(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _print(as_json: bool, value: object, view: RenderableType) -> None:
    if as_json:
        terminal.echo(json.dumps(to_json(value), indent=2, ensure_ascii=False))
    else:
        Console().print(view)
