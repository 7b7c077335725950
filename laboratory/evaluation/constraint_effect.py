"""Counts the answers that constrained decoding changes.

    python -m laboratory.evaluation.constraint_effect [--url URL] [--scenes N] [--clients N]

Every question about every scene is sent twice over REST, constrained and unconstrained. Answers of
tasks without a grammar cannot differ.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
from rich.console import Console
from rich.progress import track

from export.scenes import questions
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import evaluation_scene, offered_tasks, predict, served_models

_TIMEOUT_S = 60
_Count = Counter[tuple[str, bool]]  # by task, and whether the answer changed


def main() -> None:
    """Print the number of changed answers and of all answers for each model and task."""
    parser = argparse.ArgumentParser(
        "python -m laboratory.evaluation.constraint_effect", description=__doc__
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:3000", help="of the service; default: %(default)s"
    )
    parser.add_argument("--scenes", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--clients",
        type=int,
        default=4,
        metavar="N",
        help="concurrent scenes; default: %(default)s",
    )
    parsed = parser.parse_args()
    print("| model | task | answers | changed by constraints |\n|---|---|---|---|")
    with (
        httpx.Client(base_url=parsed.url, timeout=_TIMEOUT_S) as client,
        ThreadPoolExecutor(parsed.clients) as pool,
    ):
        for model in served_models(client):
            count_one = partial(count_scene, client, model, offered_tasks(client, model))
            counts = track(
                pool.map(count_one, range(parsed.scenes)),
                model,
                parsed.scenes,
                console=Console(stderr=True),
            )
            total = sum(counts, _Count())
            for task in sorted({task for task, _ in total}):
                print(
                    f"| {model} | {task} | {total[task, True] + total[task, False]} |"
                    f" {total[task, True]} |"
                )


def count_scene(client: httpx.Client, model_id: str, offered: frozenset[str], index: int) -> _Count:
    """Return the number of changed and unchanged answers about one scene."""
    return _Count(_changes(client, model_id, offered, index))


def _changes(
    client: httpx.Client, model_id: str, offered: frozenset[str], index: int
) -> Iterator[tuple[str, bool]]:
    scene = evaluation_scene(index)
    image = CONDITIONS["plain"](scene)
    for question in questions(scene):
        if question.task not in offered:
            continue
        scaled = question.scaled(image.size_wh)
        free, held = (
            predict(client, model_id, scaled, image, is_constrained)
            for is_constrained in (False, True)
        )
        if free is not None and held is not None:
            yield question.task, free.json()["raw_text"] != held.json()["raw_text"]


if __name__ == "__main__":
    main()
