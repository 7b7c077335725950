"""Properties of a run in its report: date, service, models, options, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from diptych_client.evaluation.questionnaire import Sample
from diptych_client.long_runs import FailureLog
from diptych_client.requests import DEFAULT_OPTIONS, given_fields
from diptych_client.results import Model

_MAX_SAMPLES = 1000  # samples that are read for the requests of the report
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
            rows.append((name, _shown(value)))
        for model in self.models:
            build = f"{model['precision']}, checkpoint {model['checkpoint'][:12]}"
            rows.append((model["id"], build))
        rows.append(("requests", "; ".join(self.asked)))
        if self.left_out:
            counts = [f"{count} x {done}" for done, count in sorted(self.left_out.items())]
            rows.append(("problems of the dataset", ", ".join(counts)))
        return [(name, value) for name, value in rows if value]


def _shown(value: object) -> str:
    """Return a value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Asked:
    """Arguments of a command: its service, the fields of its requests, further options."""

    url: str
    fields: Mapping[str, object]
    options: Mapping[str, object]


def run_record(
    asked: Asked, models: Sequence[Model], samples: Sequence[Sample], failures: FailureLog
) -> RunRecord:
    """Return the record of a run that ends now."""
    parts = urlsplit(asked.url)
    service = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without credentials
    settings = {"service": service, **asked.fields, **asked.options}
    settings["models"] = [model.id for model in models]
    properties = []
    for each in models:
        build = {"precision": each.precision, "checkpoint": each.checkpoint}
        properties.append({"id": each.id, "family": each.family, **build})
    shown: dict[str, None] = {}
    for sample in samples[:_MAX_SAMPLES]:
        for parameters in sample.requests:
            fields = given_fields(parameters, DEFAULT_OPTIONS)
            shown[", ".join(f"{name}={_shown(value)}" for name, value in fields.items())] = None
    failed = []
    for row in failures.first:
        failed.append(Failed(str(row["image"]), str(row["model"]), str(row["message"])))
    return RunRecord(
        datetime.now(UTC).isoformat(timespec="seconds"),
        settings,
        tuple(properties),
        tuple(list(shown)[:_MAX_ASKED]),
        failures.num_failures,
        tuple(failed),
    )
