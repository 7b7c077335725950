"""Roles: the parts of the service that one start runs.

python -m service                 the gateway, and every runner without a URL in the settings
python -m service gateway         the gateway alone; all its runners have URLs
python -m service runner MODEL    one runner alone, on the service's host and port

The served models are imported late: the supervisor of a single process knows none, and stays small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runners.options import runner_name
from service.settings import Settings, SettingsError, variable
from tasks.catalog import load_catalog, model_id_of

USAGE = "python -m service [gateway | runner MODEL]"
GATEWAY = "diptych"  # name of the BentoML service


@dataclass(frozen=True, slots=True)
class Role:
    """The part of the service that a start runs."""

    name: Literal["all", "gateway", "runner"]
    model_id: str = ""  # set for a runner only

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Role":
        """Parse command-line arguments; raise `SettingsError`."""
        match tuple(arguments):
            case ():
                return cls("all")
            case ("gateway",):
                return cls("gateway")
            case ("runner", model_id):
                return cls("runner", model_id_of(model_id))
        raise SettingsError(f"{' '.join(arguments)!r} is not a role; usage: {USAGE}")

    @property
    def is_runner(self) -> bool:
        """True for a runner alone."""
        return self.name == "runner"

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return `environment` with the settings of this role: a runner serves its model.

        Of the other served models it keeps the adapters of its model.
        """
        if not self.is_runner:
            return dict(environment)
        others = (variable("runner_urls"), variable("devices"), variable("processes"))
        common = {name: value for name, value in environment.items() if name not in others}
        models = ",".join([self.model_id, *self._adapters(environment)])
        for pair in environment.get(variable("devices"), "").split(","):
            if pair.strip().partition("=")[0] == self.model_id:
                common[variable("devices")] = pair.strip()
        return common | {variable("models"): models}

    def _adapters(self, environment: Mapping[str, str]) -> list[str]:
        """Return the adapters of a runner's model among the served models of `environment`."""
        from service.inference.served_models import adapters_of

        models = environment.get(variable("models"), "").split(",")
        served = [model_id_of(model.strip()) for model in models]
        path = environment.get(variable("catalog")) or Settings.model_fields["catalog"].default
        catalog = load_catalog(Path(path), served)
        return [model for model in adapters_of(self.model_id, catalog.values()) if model in served]

    def front(self) -> str:
        """Return the name of the BentoML service on the service's port."""
        return runner_name(self.model_id) if self.is_runner else GATEWAY

    def runners_behind(self, values: Settings) -> list[str]:
        """Return the names of the gateway's runner processes on this host."""
        if self.name != "all" or values.is_one_process:
            return []
        from service.inference.served_models import runner_processes, served_entries

        return list(map(runner_name, runner_processes(served_entries(values), values)))
