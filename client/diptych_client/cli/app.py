"""The commands of `diptych`."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console, RenderableType

from diptych_client.annotate import AgreementRule, DatasetFormat
from diptych_client.cli.folder import AnnotateCommand, annotate_folder
from diptych_client.cli.options import ConnectionOptions, TaskOptions, with_task_options
from diptych_client.cli.terminal import echo
from diptych_client.cli.views import answer_view, comparison_view, models_view, tasks_view
from diptych_client.drawing import draw_answer, draw_comparison, open_upright
from diptych_client.errors import DiptychError
from diptych_client.long_runs import RunError
from diptych_client.requests import read_api_key
from diptych_client.transports.rest_messages import answer_json, comparison_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ImagePath = Annotated[
    Path, typer.Argument(help="A JPEG, PNG or WebP file.", exists=True, dir_okay=False)
]
Draw = Annotated[
    Path | None, typer.Option(help="Draw the answer on the image and save it here.", dir_okay=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelId = Annotated[
    str | None, typer.Option(help="Model id; default: the first that offers the task.")
]
ModelIds = Annotated[
    list[str] | None, typer.Option(help="Model id; repeatable; default: all that offer the task.")
]
Concurrency = Annotated[int, typer.Option(help="Number of concurrent requests.", min=1)]


def main() -> None:
    """Run a command. Exit status: 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        app(prog_name="diptych")
    except (DiptychError, RunError, OSError, ValueError, Image.DecompressionBombError) as error:
        message = str(error).replace("\n", "\\n")  # one line
        echo(f"error: {message}", is_error=True)
        sys.exit(1)


@app.callback()
def connect(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(help="http(s)://HOST:PORT or grpc(s)://HOST:PORT.")
    ] = "http://localhost:3000",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key.", exists=True)
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(help="Deadline of a request, retries included.", min=0.001)
    ] = 60.0,
    max_retries: Annotated[
        int, typer.Option(help="Maximum number of retries of a request.", min=0)
    ] = 3,
) -> None:
    """Run vision tasks on a Diptych service."""
    api_key = None if api_key_file is None else read_api_key(api_key_file)
    context.obj = ConnectionOptions(url, api_key, timeout_s, max_retries)


@app.command()
@with_task_options
def predict(
    context: typer.Context,
    image: ImagePath,
    task_options: TaskOptions,
    model: ModelId = None,
    draw: Draw = None,
    as_json: AsJson = False,
) -> None:
    """Run a task on an image with one model."""
    parameters = task_options.parameters()
    options = task_options.answer_options()
    with _connection(context).client() as client:
        answer = client.predict(image, task_options.task, parameters, model=model, options=options)
    _print(as_json, answer_json(answer), answer_view(answer))
    if draw is not None:
        draw_answer(open_upright(image), answer).save(draw)


@app.command()
@with_task_options
def compare(
    context: typer.Context,
    image: ImagePath,
    task_options: TaskOptions,
    models: ModelIds = None,
    draw: Draw = None,
    as_json: AsJson = False,
) -> None:
    """Run a task on an image with several models; `--draw` shows them side by side."""
    parameters = task_options.parameters()
    options = task_options.answer_options()
    with _connection(context).client() as client:
        comparison = client.compare(
            image, task_options.task, parameters, models=models, options=options
        )
    _print(as_json, comparison_json(comparison), comparison_view(comparison))
    if draw is not None:
        draw_comparison(open_upright(image), comparison).save(draw)


@app.command("models")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the served models."""
    with _connection(context).client() as client:
        models = client.models()
    _print(as_json, [asdict(model) for model in models], models_view(models))


@app.command("tasks")
def list_tasks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the tasks with their parameters and the models that offer them."""
    with _connection(context).client() as client:
        tasks = client.tasks()
    _print(as_json, [asdict(task) for task in tasks], tasks_view(tasks))


@app.command()
@with_task_options
def annotate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of images.", exists=True, file_okay=False)],
    task_options: TaskOptions,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model id, with --consensus twice; default: the first that offer the task."
        ),
    ] = None,
    consensus: Annotated[
        bool,
        typer.Option(
            "--consensus", help="Label with two models; list what they disagree on for review."
        ),
    ] = False,
    iou: Annotated[
        float, typer.Option(help="With --consensus: minimum IoU of boxes that agree.", min=0, max=1)
    ] = 0.5,
    accept_score: Annotated[
        float,
        typer.Option(
            help="With --consensus: minimum score of both boxes; others go to review.", min=0, max=1
        ),
    ] = 0.0,
    dataset_format: Annotated[
        DatasetFormat, typer.Option("--format", help="Dataset format.")
    ] = DatasetFormat.coco,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; default: FOLDER-annotations.", file_okay=False),
    ] = None,
    concurrency: Concurrency = 8,
) -> None:
    """Label a folder of images and write a dataset; the same command resumes an interrupted run.

    Each answer is appended to journal.jsonl when it arrives; the dataset is written from the
    journal at the end. failures.jsonl lists the images that failed and their errors; the next run
    retries them.
    """
    out = out or folder.resolve().with_name(f"{folder.resolve().name}-annotations")
    rule = AgreementRule(iou, accept_score) if consensus else None
    command = AnnotateCommand(
        folder, out, dataset_format, task_options, tuple(model or ()), rule, concurrency
    )
    raise typer.Exit(1 if annotate_folder(_connection(context), command) else 0)


@app.command()
@with_task_options
def evaluate(
    context: typer.Context,
    dataset: Annotated[
        Path, typer.Argument(help="A COCO, YOLO, VOC, JSON lines, Hugging Face or image folder.")
    ],
    task_options: TaskOptions,
    models: ModelIds = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; default: DATASET-TASK beside it.", file_okay=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images of a label file.", exists=True, file_okay=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset, such as val.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='YAML file of prompts: `car: "car, automobile"`.', exists=True, dir_okay=False
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Number of images, drawn by --seed.", min=1)
    ] = None,
    concurrency: Concurrency = 8,
    gallery: Annotated[int, typer.Option(help="Number of images in the report.", min=0)] = 200,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Fit the probability of the scores and write it here.", dir_okay=False),
    ] = None,
) -> None:
    """Evaluate models on a dataset, or compare them on images without labels; write a report.

    The same command resumes an interrupted run: answers are kept in answers.jsonl. failures.jsonl
    lists the requests that failed; the next run retries them.
    """
    try:
        from diptych_client.cli.evaluation import EvaluateCommand, evaluate_dataset
    except ImportError as error:
        raise RunError(
            f"evaluate needs {error.name}: pip install 'diptych-client[evaluate]'"
        ) from error
    out = out or dataset.resolve().with_name(f"{dataset.resolve().stem}-{task_options.task}")
    command = EvaluateCommand(
        dataset=dataset,
        out=out,
        task_options=task_options,
        models=models,
        images=images,
        split=split,
        prompts=prompts,
        num_images=sample,
        concurrency=concurrency,
        gallery=gallery,
        calibrate=calibrate,
    )
    raise typer.Exit(1 if evaluate_dataset(_connection(context), command) else 0)


@app.command("mcp")
def serve_mcp(context: typer.Context) -> None:
    """Serve the tasks to agents: one tool each, by the Model Context Protocol on stdin and
    stdout.
    """
    try:
        from diptych_client.integrations.mcp_server import serve
    except ImportError as error:
        raise RunError(f"mcp needs {error.name}: pip install 'diptych-client[mcp]'") from error

    async def run() -> None:
        async with _connection(context).async_client() as client:
            await serve(client)

    asyncio.run(run())


def _connection(context: typer.Context) -> ConnectionOptions:
    connection: ConnectionOptions = context.obj
    return connection


def _print(as_json: bool, value: object, view: RenderableType) -> None:
    if as_json:
        echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        Console().print(view)
