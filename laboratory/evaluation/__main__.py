"""Measures the accuracy of a running service on rendered scenes, whose true answers are known.

    python -m laboratory.evaluation [--url URL] [--models ID …] [--scenes N] [--conditions NAME …]
    [--clients N] [--details]

Requests go over REST, greedy and unconstrained. Prints one table per condition and, for several
conditions, a table of the loss of each against the first. `--details` adds a table of all questions
with latencies; with more than one client they include the time that requests wait for each other.
"""

import argparse
from collections.abc import Sequence

import httpx
from rich.console import Console
from rich.progress import track

from laboratory.evaluation import (
    CONDITIONS,
    Evaluation,
    accuracy_table,
    collect,
    question_table,
    robustness_table,
)
from laboratory.evaluation.client import answer_scenes, served_models

_TIMEOUT_S = 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate models of a running service under each condition and print the tables."""
    parsed = _parse(arguments)
    limits = httpx.Limits(max_connections=parsed.clients, max_keepalive_connections=parsed.clients)
    by_condition: dict[str, dict[str, Evaluation]] = {}
    with httpx.Client(base_url=parsed.url, timeout=_TIMEOUT_S, limits=limits) as client:
        models = parsed.models or list(served_models(client))
        for condition in parsed.conditions:
            evaluations = {model: _evaluate(client, model, condition, parsed) for model in models}
            by_condition[condition] = evaluations
            print(
                f"{condition}, {parsed.scenes} scenes\n\n{accuracy_table(evaluations)}\n",
                flush=True,
            )
            if parsed.details:
                print(f"{question_table(evaluations)}\n", flush=True)
    if len(by_condition) > 1:
        print(robustness_table(by_condition))


def _evaluate(
    client: httpx.Client, model_id: str, condition: str, parsed: argparse.Namespace
) -> Evaluation:
    """Evaluate with a progress bar on stderr."""
    answers = answer_scenes(client, model_id, CONDITIONS[condition], parsed.scenes, parsed.clients)
    return collect(
        track(answers, f"{model_id}, {condition}", parsed.scenes, console=Console(stderr=True))
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.evaluation", description=summary)
    parser.add_argument(
        "--url", default="http://127.0.0.1:3000", help="of the service; default: %(default)s"
    )
    parser.add_argument("--models", nargs="+", metavar="ID", help="default: all served models")
    parser.add_argument(
        "--scenes", type=_positive, default=60, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=CONDITIONS,
        default=["plain"],
        help="default: plain; the others are compared with the first",
    )
    parser.add_argument(
        "--clients",
        type=_positive,
        default=1,
        metavar="N",
        help="concurrent requests; default: %(default)s",
    )
    parser.add_argument(
        "--details", action="store_true", help="also print every question with its latency"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; given: {value}")
    return value


if __name__ == "__main__":
    main()
