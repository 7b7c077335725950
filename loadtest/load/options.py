"""The options that the load test adds to Locust's own, and what they were given as."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal
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
    max_outstanding: int

    @property
    def unit(self) -> str:
        """Of levels."""
        return "requests/s" if self.arrivals == "open" else "clients"

    def grpc_address(self, url: str) -> str:
        """Return HOST:PORT of the gRPC port."""
        return self.grpc or f"{urlsplit(url).hostname}:3001"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them; a web UI shows them too, and a master gives them to its workers."""
    group = parser.add_argument_group("Diptych's load test")
    add = group.add_argument
    scenarios = ["saturation", "ramp", "soak", "manual"]
    add("--scenario", choices=scenarios, default=scenarios[0], help="manual: users by hand")
    add("--arrivals", choices=["open", "closed"], default="open", help="open: requests/s; closed: clients that wait")
    add("--level", type=float, default=10.0, help="requests/s or clients, of a soak and of a ramp's end")
    add("--first-level", type=float, default=4.0, help="the same, of the first step and of a ramp's begin")
    add("--seconds", type=float, default=320.0, help="of the whole run, at most, without its last answers")
    add("--mix", default=str(_HERE / "traffic_mix.yaml"), help="what is asked; a path on every worker")
    add("--grpc", default="", metavar="HOST:PORT", help="default: port 3001 of --host")
    add("--results", default=str(_HERE.parent / "results" / "load"), metavar="FOLDER", help="where the report goes")
    add("--max-outstanding", type=int, default=256, help="requests under way in one worker; others are not sent")


def options_of(parsed: argparse.Namespace | None) -> Options:
    """Return the values of a parsed command line; Locust has none only where it is a library."""
    return Options(**{field.name: getattr(parsed, field.name) for field in fields(Options)})
