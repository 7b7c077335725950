"""The command line options of the load test besides Locust's own."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

Scenario = Literal["saturation", "ramp", "soak", "manual"]
Arrivals = Literal["open", "closed"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Options:
    """The values of one run."""

    scenario: Scenario
    arrivals: Arrivals
    level: float
    first_level: float
    seconds: float
    mix: str
    grpc: str
    results: str

    @property
    def unit(self) -> str:
        """Of levels."""
        return "requests/s" if self.arrivals == "open" else "clients"

    def grpc_address(self, url: str) -> str:
        """Return HOST:PORT of the gRPC port."""
        return self.grpc or f"{urlsplit(url).hostname}:3001"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; Locust's page shows them too, and a master sends them to its workers."""
    add = parser.add_argument_group("Diptych's load test").add_argument
    scenarios = get_args(Scenario)
    add(
        "--scenario",
        choices=scenarios,
        default=scenarios[0],
        help="manual: users set in Locust's page",
    )
    add(
        "--arrivals",
        choices=get_args(Arrivals),
        default="open",
        help="open: requests/s; closed: waiting clients",
    )
    add(
        "--level",
        type=float,
        default=10.0,
        help="requests/s or clients, of a soak and of a ramp's end",
    )
    add(
        "--first-level",
        type=float,
        default=4.0,
        help="the same, of the first step and of a ramp's start",
    )
    add("--seconds", type=float, default=320.0, help="maximum duration, without the last answers")
    add(
        "--mix", default=str(_HERE / "traffic_mix.yaml"), help="traffic mix; a path on every worker"
    )
    add("--grpc", default="", metavar="HOST:PORT", help="default: port 3001 of --host")
    add(
        "--results",
        default=str(_HERE.parent / "results" / "load"),
        metavar="FOLDER",
        help="of the report",
    )


def options_of(parsed: argparse.Namespace | None) -> Options:
    """Return a command line's values. It is None only if Locust is used as a library."""
    return Options(**{field.name: getattr(parsed, field.name) for field in fields(Options)})
