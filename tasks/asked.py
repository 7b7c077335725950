"""A task that was asked for by a prompt, the way a model's users write it, instead of by its id and parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.results import BoxXyxy


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task and its parameters, in JSON types; they are not checked yet."""

    task_id: str
    values: Mapping[str, object] = field(default_factory=dict)
    region_shares: BoxXyxy | None = None  # the parameter `region`, in shares of the image's width and height
