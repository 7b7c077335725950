"""The models that can be served, strictly parsed from catalog.yaml.

An entry is data about a checkpoint; its files and artifacts are not known here.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import yaml

from tasks.table import FAMILY_NAMES, TASKS, Family

QUESTION_FIELD = "{question}"
# the only task whose prompt differs between fine-tuned checkpoints
TEMPLATE_TASK = "visual_question_answering"

Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
Precision = Literal["float32", "int8", "bfloat16", "float16"]

HUB_PREFIX = "hf:"  # prefix of a model named by its repository: hf:owner/name
HUB_SEPARATOR = "--"  # replaces the slash in the id of such a model: owner--name

_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_NOT_IN_ID = re.compile(r"[^a-z0-9.-]+")
_ANY = "*"  # wildcard in the id and source of an entry for many repositories
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}")
_REVISION = re.compile(r"[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALIAS = re.compile(r"\S{1,200}")
_MAX_ALIASES = 20


class CatalogError(ValueError):
    """The catalog is invalid.

    The message names the entry, the key, the value and what is allowed.
    """


@dataclass(frozen=True, slots=True)
class TaskOverride:
    """An entry's change to its family's tasks: a prompt template adds a task, None removes it."""

    template: str | None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model: a checkpoint of a family."""

    id: str
    family: Family
    source: str  # folder relative to the root of the repository, or hub id
    revision: str | None  # commit, branch or tag of a hub source; default: main
    organization: str
    category: str
    modality: str
    license: str
    release_date: str  # YYYY-MM
    parameters: int
    context_window: int  # tokens, image tokens included
    resolution: int  # side of the square that images are resized to, px
    # chosen for each part on each device; the export measures the loss
    precision: Mapping[Device, Mapping[Part, Precision]]
    features: tuple[str, ...]
    mask_decoder: str | None = None  # file inside the source folder, or hf:// address
    # PaliGemma's; otherwise it detects all names by one prompt
    one_name_per_prompt: bool = False
    tasks: Mapping[str, TaskOverride] = field(default_factory=dict)
    weights_sha256: str | None = None  # hash of model.safetensors at `revision`, hexadecimal
    # the id of the base, if the source is a LoRA adapter in PEFT's format
    adapter_of: str | None = None
    # other names by which adapters of this checkpoint name their base
    aliases: tuple[str, ...] = ()
    # the tasks that this model offers, in the table's order
    task_ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        offered: list[str] = []
        for task in TASKS.values():
            override = self.tasks.get(task.id)
            if override is not None:
                is_offered = override.template is not None
            else:
                is_offered = self.family in task.families
            if is_offered:
                offered.append(task.id)
        object.__setattr__(self, "task_ids", tuple(offered))

    def template(self, task_id: str) -> str | None:
        """Return the entry's own prompt template for the task, or None."""
        override = self.tasks.get(task_id)
        return override.template if override else None


def model_id_of(name: str) -> str:
    """Return the id of a model that is named by it, or by its repository as `hf:owner/name`."""
    is_hub = name.startswith(HUB_PREFIX)
    return hub_model_id(name.removeprefix(HUB_PREFIX)) if is_hub else name


def hub_model_id(repository: str) -> str:
    """Return the id of a repository's model: `owner--name`, in the characters of ids."""
    return _NOT_IN_ID.sub("-", repository.lower().replace("/", HUB_SEPARATOR))


def load_catalog(path: Path, wanted: Collection[str] = ()) -> dict[str, CatalogEntry]:
    """Read the catalog in file order.

    An entry whose id has a `*` stands for many repositories: it is read once for each id of
    `wanted` that it matches.

    Raise `CatalogError` for unknown, missing, invalid or duplicate entries.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path} cannot be read as YAML: {error}") from error
    rows = (
        document.get("models")
        if isinstance(document, dict) and set(document) == {"models"}
        else None
    )
    if not isinstance(rows, list):
        raise CatalogError(f"{path} must contain a list under the single key models")
    entries: dict[str, CatalogEntry] = {}
    bases: dict[str, Mapping[str, object]] = {}
    for row in _expanded(rows, wanted):
        if isinstance(row, dict) and "adapter_of" in row:
            entry = parse_entry(_with_base(row, bases))
        else:
            entry = parse_entry(row)
            bases[entry.id] = entry_row(entry)
        if entry.id in entries:
            raise CatalogError(f"{path} has more than one entry {entry.id!r}")
        entries[entry.id] = entry
    _check_aliases(entries)
    return entries


def _check_aliases(entries: Mapping[str, CatalogEntry]) -> None:
    """Raise `CatalogError` if an alias is also a name of another entry."""
    bases = [entry for entry in entries.values() if entry.adapter_of is None]
    named = {name: entry.id for entry in bases for name in (entry.id, entry.source)}
    for entry in bases:
        for alias in entry.aliases:
            if (other := named.setdefault(alias, entry.id)) != entry.id:
                raise CatalogError(f"{entry.id}: aliases has {alias!r}, a name of {other}")


def _expanded(rows: Sequence[object], wanted: Collection[str]) -> Iterator[object]:
    """Yield the rows; of one with a `*`, one for each id that matches."""
    bases = {row.get("adapter_of") for row in rows if isinstance(row, dict)}
    for row in rows:
        if not isinstance(row, dict) or _ANY not in str(row.get("id")):
            yield row
            continue
        pattern = re.compile(re.escape(str(row["id"])).replace(r"\*", "([a-z0-9-]+)"))
        source = str(row.get("source"))
        if row["id"].count(_ANY) != 1 or source.count(_ANY) != 1:
            raise CatalogError(f"{row['id']}: id and source must have one {_ANY} each")
        parse_entry({**row, "id": row["id"].replace(_ANY, "x")})  # also checked when none matches
        for model_id in sorted({*wanted, *filter(None, bases)}):
            if match := pattern.fullmatch(str(model_id)):
                yield {**row, "id": model_id, "source": source.replace(_ANY, match[1])}


def _with_base(
    row: Mapping[str, object], bases: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """Return the row of an adapter with the keys of its base, which comes before it."""
    entry_id = row.get("id")
    base = row["adapter_of"]
    if not isinstance(base, str) or base not in bases:
        allowed = f"a model before it that is not an adapter: {', '.join(bases)}"
        raise CatalogError(f"{entry_id}: adapter_of must be {allowed}; not {base!r}")
    if fixed := sorted(_OF_BASE & row.keys()):
        raise CatalogError(
            f"{entry_id}: an adapter shares {', '.join(fixed)} with its base {base}; remove the"
            " keys"
        )
    if "source" not in row:
        raise CatalogError(f"{entry_id} misses the keys ['source']")
    return {**bases[base], "revision": None, "weights_sha256": None, "aliases": [], **row}


def adapter_entry(
    model_id: str, source: str, row: Mapping[str, object], base: CatalogEntry
) -> CatalogEntry:
    """Return the entry of an adapter outside the catalog; missing keys are the base's.

    Raise `CatalogError`.
    """
    if fixed := sorted({"id", "source"} & row.keys()):
        raise CatalogError(f"{model_id}: {fixed[0]} is not allowed; it follows from the folder")
    own = {**row, "id": model_id, "source": source, "adapter_of": base.id}
    return parse_entry(_with_base(own, {base.id: entry_row(base)}))


def entry_row(entry: CatalogEntry) -> dict[str, object]:
    """Return the entry as `parse_entry` reads it, without `adapter_of`."""
    row = {
        each.name: getattr(entry, each.name)
        for each in fields(entry)
        if each.init and each.name != "adapter_of"
    }
    tasks = {
        task: override.template and {"template": override.template}
        for task, override in entry.tasks.items()
    }
    lists = {"features": list(entry.features), "aliases": list(entry.aliases)}
    return row | lists | {"tasks": tasks}


def parse_entry(row: object) -> CatalogEntry:
    """Return one entry of the catalog; raise `CatalogError`."""
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("id"), str)
        or not _ID.fullmatch(row["id"])
    ):
        allowed = "a mapping with an id of lower-case letters, digits, '.' and '-'"
        raise CatalogError(f"an entry must be {allowed}, not {row!r}")
    entry_id = row["id"]
    known = {each.name for each in fields(CatalogEntry) if each.init}
    if unknown := set(row) - known:
        raise CatalogError(
            f"{entry_id} has unknown keys {sorted(map(str, unknown))}; allowed are {sorted(known)}"
        )
    if missing := known - _OPTIONAL - set(row):
        raise CatalogError(f"{entry_id} misses the keys {sorted(missing)}")
    for key, value in row.items():
        _check_value(entry_id, key, value)
    overrides = {
        task_id: _override(entry_id, task_id, value)
        for task_id, value in row.get("tasks", {}).items()
    }
    lists = {"features": tuple(row["features"]), "aliases": tuple(row.get("aliases", ()))}
    entry = CatalogEntry(**{**row, **lists, "tasks": overrides})
    needs = entry.family == "paligemma" and "instance_segmentation" in entry.task_ids
    if needs != (entry.mask_decoder is not None):
        rule = "set for paligemma models that offer instance_segmentation, and for no others"
        raise CatalogError(f"{entry.id}: mask_decoder must be {rule}, not {entry.mask_decoder!r}")
    return entry


_OPTIONAL = {
    "adapter_of",
    "aliases",
    "mask_decoder",
    "one_name_per_prompt",
    "tasks",
    "weights_sha256",
}
_OF_BASE = {"aliases", "family", "resolution", "context_window", "precision", "mask_decoder"}
_CHOICES: dict[str, tuple[str, ...]] = {"family": FAMILY_NAMES}
_PRECISIONS: dict[Device, dict[Part, tuple[Precision, ...]]] = {
    "cpu": {"encoder": ("float32", "int8"), "decoder": ("float32", "int8", "bfloat16")},
    "cuda": {"encoder": ("float32", "float16"), "decoder": ("float32", "bfloat16", "float16")},
}
_COUNTS = ("parameters", "context_window", "resolution")
_PATTERNS = {
    "release_date": (_DATE, "YYYY-MM"),
    "revision": (_REVISION, "null, or a commit, branch or tag"),
    "weights_sha256": (_SHA256, "64 hexadecimal digits"),
}


def _check_value(entry_id: str, key: str, value: object) -> None:
    def require(is_right: bool, allowed: str) -> None:
        if not is_right:
            raise CatalogError(f"{entry_id}: {key} must be {allowed}, not {value!r}")

    if key in _CHOICES:
        require(value in _CHOICES[key], f"one of {', '.join(_CHOICES[key])}")
    elif key == "precision":
        require(
            _is_precision(value),
            f"a mapping {{device: {{part: precision}}}} with one each of {_PRECISIONS}",
        )
    elif key in _COUNTS:
        require(
            isinstance(value, int) and not isinstance(value, bool) and value > 0,
            "a whole number above 0",
        )
    elif key == "features":
        require(
            isinstance(value, list) and all(isinstance(each, str) for each in value),
            "a list of strings",
        )
    elif key == "aliases":
        require(
            _are_aliases(value),
            f"a list of at most {_MAX_ALIASES} names of 1 to 200 characters without blanks",
        )
    elif key == "one_name_per_prompt":
        require(isinstance(value, bool), "true or false")
    elif key == "tasks":
        require(isinstance(value, dict), "a mapping of task ids")
    elif value is None:
        require(key in ("revision", "mask_decoder", "weights_sha256"), "a non-blank string")
    else:
        pattern, allowed = _PATTERNS.get(key, (re.compile(r".*\S.*"), "a non-blank string"))
        require(isinstance(value, str) and bool(pattern.fullmatch(value)), allowed)


def _are_aliases(value: object) -> bool:
    if not isinstance(value, list) or len(value) > _MAX_ALIASES:
        return False
    return all(isinstance(each, str) and _ALIAS.fullmatch(each) for each in value)


def _is_precision(value: object) -> bool:
    """Return True if `value` has exactly one allowed precision for each part on each device."""
    if not isinstance(value, dict) or value.keys() != _PRECISIONS.keys():
        return False
    for device, allowed in _PRECISIONS.items():
        parts = value[device]
        if not isinstance(parts, dict) or parts.keys() != allowed.keys():
            return False
        if any(parts[part] not in precisions for part, precisions in allowed.items()):
            return False
    return True


def _override(entry_id: str, task_id: object, value: object) -> TaskOverride:
    if not isinstance(task_id, str) or task_id not in TASKS:
        raise CatalogError(
            f"{entry_id}: tasks has the unknown task {task_id!r}; allowed are {', '.join(TASKS)}"
        )
    if value is None:
        return TaskOverride(None)
    template = (
        value.get("template") if isinstance(value, dict) and set(value) == {"template"} else None
    )
    if (
        task_id != TEMPLATE_TASK
        or not isinstance(template, str)
        or template.count(QUESTION_FIELD) != 1
    ):
        allowed = (
            f"null, or for {TEMPLATE_TASK} {{template: a string that contains {QUESTION_FIELD}"
            " once}"
        )
        raise CatalogError(f"{entry_id}: tasks.{task_id} must be {allowed}, not {value!r}")
    return TaskOverride(template)
