"""Properties of a run in its report: date, service, models, options, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from diptych_client.results import Model

MAX_FAILED = 100  # named in a report
_MAX_ASKED = 20


@dataclass(frozen=True, slots=True)
class Failed:
    """A request without an answer."""

    image: str
    model: str
    error: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run; `settings` decide its results, so that reports with equal ones replace each other."""

    date: str  # UTC, ISO 8601
    settings: Mapping[str, object]
    models: tuple[Mapping[str, str], ...]
    asked: tuple[str, ...]  # parameters of the first different requests
    num_failed: int = 0
    failed: tuple[Failed, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each property."""
        rows = [("date", self.date)]
        for name, value in self.settings.items():
            rows.append((name, str(value)))
        for model in self.models:
            build = f"{model['precision']}, checkpoint {model['checkpoint'][:12]}"
            rows.append((model["id"], build))
        rows.append(("requests", "; ".join(self.asked)))
        if self.left_out:
            counts = [f"{count} x {done}" for done, count in sorted(self.left_out.items())]
            rows.append(("problems of the dataset", ", ".join(counts)))
        return [(name, value) for name, value in rows if value]


def model_properties(models: Sequence[Model]) -> tuple[Mapping[str, str], ...]:
    """Return what identifies each model's build."""
    found = []
    for each in models:
        build = {"precision": each.precision, "checkpoint": each.checkpoint}
        found.append({"id": each.id, "family": each.family, **build})
    return tuple(found)


def asked_of(requests: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """Return the first different requests as text."""
    shown: dict[str, None] = {}
    for fields in requests:
        shown[", ".join(f"{name}={value}" for name, value in fields.items())] = None
        if len(shown) > _MAX_ASKED:
            break
    return tuple(list(shown)[:_MAX_ASKED])


def without_credentials(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
