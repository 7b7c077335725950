"""What one start of the service runs: everything on this host, or one part, for hosts of its own.

python -m service                   the gateway, and every runner that the settings give no URL of
python -m service gateway           the gateway alone; its runners are all elsewhere
python -m service encoder MODEL     one encoder alone, on the service's host and port
python -m service decoder MODEL     one decoder alone, likewise
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runners.artifacts import Part
from service.settings import Settings, SettingsError, variable

USAGE = "python -m service [gateway | encoder MODEL | decoder MODEL]"
_PARTS: tuple[Part, ...] = ("encoder", "decoder")
GATEWAY = "diptych"  # the gateway's name as a service of BentoML


@dataclass(frozen=True, slots=True)
class Role:
    """What a start runs."""

    name: Literal["all", "gateway", "encoder", "decoder"]
    model_id: str = ""  # of a runner alone

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Role":
        """Read the arguments of a command line; raise `SettingsError`."""
        match tuple(arguments):
            case ():
                return cls("all")
            case ("gateway",):
                return cls("gateway")
            case ("encoder" | "decoder" as part, model_id):
                return cls(part, model_id)
        raise SettingsError(f"{' '.join(arguments)!r} is no part of the service; {USAGE}")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `parse` reads."""
        words = () if self.name == "all" else (self.name, self.model_id)
        return tuple(word for word in words if word)

    @property
    def is_runner(self) -> bool:
        """Say whether it is one runner alone."""
        return self.name in ("encoder", "decoder")

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment with the settings of this role: a runner alone serves its model, and here."""
        if not self.is_runner:
            return dict(environment)
        others = (variable("encoder_urls"), variable("decoder_urls"))
        kept = {name: value for name, value in environment.items() if name not in others}
        return kept | {variable("models"): self.model_id}

    def front(self) -> str:
        """Return the name of the service that listens on the service's port."""
        return f"{self.model_id}-{self.name}" if self.is_runner else GATEWAY

    def runners_behind(self, values: Settings) -> list[str]:
        """Return the names of the runners that the gateway has on this host."""
        if self.name != "all":
            return []
        parts = [(part, model) for model in dict.fromkeys(values.models) for part in _PARTS]
        return [f"{model}-{part}" for part, model in parts if not values.runner_urls(part, model)]

    def check(self, values: Settings) -> None:
        """Raise `SettingsError` where a gateway alone is not told of a runner."""
        if self.name != "gateway":
            return
        for model in values.models:
            for part in _PARTS:
                if not values.runner_urls(part, model):
                    name = variable(f"{part}_urls")
                    raise SettingsError(f"{name} has no URL of {model}, and a gateway alone runs no {part}")
