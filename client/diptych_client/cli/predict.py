"""The command `predict`: one image, or many with an answer for each."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from rich.console import Console

from diptych_client.cli.options import ConnectionOptions, InputOptions, TaskOptions
from diptych_client.cli.terminal import answer_view, echo, note_problems
from diptych_client.drawing import draw_answer, open_upright
from diptych_client.errors import DiptychError
from diptych_client.inputs import Folder, ImageFile, open_images
from diptych_client.long_runs import refusal
from diptych_client.results import Answer
from diptych_client.transports.rest_messages import answer_json

_SOFTWARE = 0x0131  # EXIF's tag of the program that made a picture
_PROGRAM = "diptych"


@dataclass(frozen=True, slots=True)
class _StoredImage:
    """An image that is read when its turn comes."""

    store: Folder
    image: ImageFile

    @property
    def name(self) -> str:
        return self.image.name

    def read(self) -> bytes:
        return self.store.read(self.image)


def check_drawing(path: Path, overwrite: bool) -> None:
    """Raise `RunError` for a file that is not a drawing of this program, unless it is replaced."""
    if overwrite or not path.exists():
        return
    try:
        with Image.open(path) as picture:
            program = picture.getexif().get(_SOFTWARE)
    except OSError:
        program = None
    if program != _PROGRAM:
        raise refusal(path)


def save_drawing(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[_SOFTWARE] = _PROGRAM
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif)


def predict_images(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    input_options: InputOptions,
    task_options: TaskOptions,
    model: str | None,
    draw: Path | None,
) -> int:
    """Print the answers in the order of the images; return the number of images that failed.

    With several, `draw` is a folder, and JSON has a line for each: `image` and `answer` or `error`.
    """
    with TemporaryDirectory(prefix="diptych-") as work, connection.client() as client:
        opening = input_options.opening(Path(work))
        opened = open_images(inputs, opening)
        note_problems(opening.problems, None)
        store, images = opened.images()
        is_one = len(images) == 1 and opened.chosen is not None
        drawings: dict[str, Path] = {}
        if draw is not None:
            drawings = {image.name: draw if is_one else draw / image.name for image in images}
        for path in drawings.values():
            check_drawing(path, input_options.overwrite)
        answers = client.predict_many(
            [_StoredImage(store, image) for image in images],
            task_options.task,
            task_options.parameters(),
            model=model,
            options=task_options.answer_options(),
            progress=not is_one and sys.stderr.isatty() and not sys.stdout.isatty(),
        )
        num_failed = 0
        for image, answer in zip(images, answers, strict=True):
            if isinstance(answer, Answer):
                _print_answer(image.name, answer, is_one, input_options.as_json)
                if drawing := drawings.get(image.name):
                    picture = draw_answer(open_upright(store.path / image.name), answer)
                    save_drawing(picture, drawing)
            elif is_one:
                raise answer
            else:
                num_failed += 1
                _print_error(image.name, answer, input_options.as_json)
    return num_failed


def _print_answer(name: str, answer: Answer, is_one: bool, as_json: bool) -> None:
    if as_json and is_one:
        echo(json.dumps(answer_json(answer), indent=2, ensure_ascii=False))
    elif as_json:
        echo(json.dumps({"image": name, "answer": answer_json(answer)}, ensure_ascii=False))
    else:
        if not is_one:
            echo(f"\n{name}")
        Console().print(answer_view(answer))


def _print_error(name: str, error: DiptychError, as_json: bool) -> None:
    echo(f"error: {name}: {error}", is_error=True)
    if as_json:
        echo(json.dumps({"image": name, "error": asdict(error.detail)}, ensure_ascii=False))
