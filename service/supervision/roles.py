"""The parts of the service that one start runs.

python -m service                 the gateway, and every runner that has no URL in the settings
python -m service gateway         the gateway alone; its runners are all elsewhere
python -m service runner MODEL    one runner alone, on the service's host and port
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runners.options import runner_name
from service.settings import Settings, SettingsError, variable

USAGE = "python -m service [gateway | runner MODEL]"
GATEWAY = "diptych"  # the gateway's name as a service of BentoML


@dataclass(frozen=True, slots=True)
class Role:
    """The part of the service that a start runs."""

    name: Literal["all", "gateway", "runner"]
    model_id: str = ""  # of a runner alone

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Role":
        """Read the arguments of a command line; raise `SettingsError`."""
        match tuple(arguments):
            case ():
                return cls("all")
            case ("gateway",):
                return cls("gateway")
            case ("runner", model_id):
                return cls("runner", model_id)
        raise SettingsError(f"{' '.join(arguments)!r} is not a part of the service; usage: {USAGE}")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that `parse` reads."""
        words = () if self.name == "all" else (self.name, self.model_id)
        return tuple(word for word in words if word)

    @property
    def is_runner(self) -> bool:
        """True for one runner alone."""
        return self.name == "runner"

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with the settings of this role: a runner alone serves its model, on this host."""
        if not self.is_runner:
            return dict(environment)
        kept = {name: value for name, value in environment.items() if name != variable("runner_urls")}
        return kept | {variable("models"): self.model_id}

    def front(self) -> str:
        """Return the name of the service that listens on the service's port."""
        return runner_name(self.model_id) if self.is_runner else GATEWAY

    def runners_behind(self, values: Settings) -> list[str]:
        """Return the names of the runners that the gateway has on this host."""
        if self.name != "all":
            return []
        return [runner_name(model) for model in dict.fromkeys(values.models) if values.runner_url(model) is None]

    def check(self, values: Settings) -> None:
        """Raise `SettingsError` where a gateway alone has no URL for a runner."""
        missing = [model for model in values.models if values.runner_url(model) is None]
        if self.name == "gateway" and missing:
            name = variable("runner_urls")
            raise SettingsError(f"{name} has no URL for {', '.join(missing)}; a gateway alone starts no runner")
