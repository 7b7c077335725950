"""The commands of `python -m client`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from client.annotate import AnnotationError, DatasetFormat
from client.cli.asked import Asked, asking
from client.cli.folder import FolderCall, annotate_folder
from client.cli.service import Service
from client.cli.tables import answer_view, comparison_view, models_view, tasks_view
from client.drawing import draw_answer, draw_comparison, open_upright
from client.errors import DiptychError
from client.rest_messages import answer_json, comparison_json

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)

ImagePath = Annotated[Path, typer.Argument(help="A JPEG, PNG or WebP file.", exists=True, dir_okay=False)]
Draw = Annotated[Path | None, typer.Option(help="Paint the answer over the image, into this file.", dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelId = Annotated[str | None, typer.Option(help="Model id; the first that offers the task where none is given.")]


def main() -> None:
    """Run a command; status 1 says that it failed, 2 that it was called wrongly, 130 that it was interrupted."""
    try:
        app(prog_name="python -m client")
    except (DiptychError, AnnotationError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


@app.callback()
def choose_service(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="http(s)://HOST:PORT, or grpc(s)://HOST:PORT.")] = "http://localhost:3000",
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key.", exists=True)] = None,
    timeout_s: Annotated[float, typer.Option(help="Time for one request, retries included.", min=0.001)] = 60.0,
    max_retries: Annotated[int, typer.Option(help="Most retries of a request that may succeed later.", min=0)] = 3,
) -> None:
    """Ask a Diptych service about images."""
    api_key = None if api_key_file is None else api_key_file.read_text(encoding="utf-8").strip()
    context.obj = Service(url, api_key, timeout_s, max_retries)


@app.command()
@asking
def predict(
    context: typer.Context,
    image: ImagePath,
    asked: Asked,
    model: ModelId = None,
    draw: Draw = None,
    as_json: AsJson = False,
) -> None:
    """Ask one model about an image."""
    with _service(context).client() as client:
        answer = client.predict(image, asked.task, asked.parameters(), model=model, options=asked.options())
    _tell(as_json, answer_json(answer), answer_view(answer))
    if draw is not None:
        draw_answer(open_upright(image), answer).save(draw)


@app.command()
@asking
def compare(
    context: typer.Context,
    image: ImagePath,
    asked: Asked,
    models: Annotated[list[str] | None, typer.Option(help="Model id; repeat it. Else all that offer the task.")] = None,
    draw: Draw = None,
    as_json: AsJson = False,
) -> None:
    """Ask several models about an image; a picture has one panel for each."""
    with _service(context).client() as client:
        parameters, options = asked.parameters(), asked.options()
        comparison = client.compare(image, asked.task, parameters, models=models, options=options)
    _tell(as_json, comparison_json(comparison), comparison_view(comparison))
    if draw is not None:
        draw_comparison(open_upright(image), comparison).save(draw)


@app.command("models")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the served models."""
    with _service(context).client() as client:
        models = client.models()
    _tell(as_json, [asdict(model) for model in models], models_view(models))


@app.command("tasks")
def list_tasks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the tasks with their parameters and the models that offer them."""
    with _service(context).client() as client:
        tasks = client.tasks()
    _tell(as_json, [asdict(task) for task in tasks], tasks_view(tasks))


@app.command()
@asking
def annotate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of images.", exists=True, file_okay=False)],
    asked: Asked,
    model: ModelId = None,
    dataset_format: Annotated[DatasetFormat, typer.Option("--format", help="What is written.")] = DatasetFormat.coco,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; FOLDER-annotations where none is given.", file_okay=False)
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at work together.", min=1)] = 8,
) -> None:
    """Label a folder of images. Run again after an interruption, it goes on where it was.

    Every answer is kept in journal.jsonl as it comes, and the dataset is written from it at the end. failures.jsonl
    has the images that got none, and why; they are asked about again by the next run.
    """
    out = out or folder.resolve().with_name(f"{folder.resolve().name}-annotations")
    call = FolderCall(folder, out, dataset_format, asked, model, concurrency)
    raise typer.Exit(1 if annotate_folder(_service(context), call) else 0)


def _service(context: typer.Context) -> Service:
    service: Service = context.obj
    return service


def _tell(as_json: bool, value: object, view: RenderableType) -> None:
    """Print a value for a program, or its view for a person."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        Console().print(view)
