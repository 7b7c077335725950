"""Measures the accuracy of a running service on rendered scenes, whose true answers are known.

    python -m laboratory.evaluation [--url URL] [--models ID …] [--scenes N] [--conditions NAME …]
    [--clients N]

Requests go over REST, greedy and unconstrained. Prints one table per condition.
"""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.progress import track

from laboratory.evaluation.client import answer_scenes, connected, served_models
from laboratory.evaluation.scenes import CONDITIONS
from laboratory.scoring import Scorecard, accuracy_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate models of a running service under each condition and print the tables."""
    parsed = _parse(arguments)
    console = Console(stderr=True)
    with connected(parsed.url, parsed.clients) as client:
        models = parsed.models or list(served_models(client))
        for condition in parsed.conditions:
            render = CONDITIONS[condition]
            scorecards = {}
            for model in models:
                scores = answer_scenes(client, model, render, parsed.scenes, parsed.clients)
                tracked = track(scores, f"{model}, {condition}", parsed.scenes, console=console)
                scorecards[model] = sum(tracked, Scorecard())
            table = accuracy_table(scorecards)
            print(f"{condition}, {parsed.scenes} scenes\n\n{table}\n", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.evaluation", description=summary)
    add = parser.add_argument
    default = "default: %(default)s"
    add("--url", default="http://127.0.0.1:3000", help=f"of the service; {default}")
    add("--models", nargs="+", metavar="ID", help="default: all served models")
    add("--scenes", type=_positive, default=60, metavar="N", help=default)
    add("--conditions", nargs="+", choices=CONDITIONS, default=["plain"], help="default: plain")
    clients = f"concurrent requests; {default}"
    add("--clients", type=_positive, default=1, metavar="N", help=clients)
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; given: {value}")
    return value


if __name__ == "__main__":
    main()
