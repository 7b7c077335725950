"""Measures a model's accuracy on things at each precision and records it beside the catalog.

    python -m laboratory.thing_precision MATERIAL MODEL [--scenes N] [--clients N]

The method is that of `laboratory/evaluation/precision.py`. MATERIAL is the folder of `python -m
laboratory.things`.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx

from export.scenes import Scorecard, score_answer
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import answer_questions, offered_tasks
from laboratory.evaluation.precision import precision_parser, run
from laboratory.things import Material
from laboratory.things.accuracy import Asked, asked_scenes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on scenes of things; return the exit status."""
    parser = precision_parser("python -m laboratory.thing_precision", __doc__ or "")
    parser.add_argument("material", type=Path, metavar="MATERIAL")
    parser.add_argument("model", metavar="MODEL", help="an id of models/catalog.yaml")
    parsed = parser.parse_args(arguments)
    return run(parsed, partial(score_things, Material(parsed.material)))


def score_things(
    material: Material, client: httpx.Client, model: str, num_scenes: int, num_clients: int
) -> Scorecard:
    """Score the answers about unseen scenes."""
    offered = offered_tasks(client, model)

    def answer(asked: Asked) -> Scorecard:
        image, questions = asked
        offered_ones = [question for question in questions if question.task in offered]
        return answer_questions(client, model, image, offered_ones, score_answer)

    scenes = asked_scenes(material, num_scenes, "ours", CONDITIONS["plain"])
    with ThreadPoolExecutor(num_clients) as pool:
        return sum(pool.map(answer, scenes), Scorecard())


if __name__ == "__main__":
    sys.exit(main())
