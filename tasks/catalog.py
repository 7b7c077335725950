"""The models that can be served, strictly parsed from catalog.yaml.

An entry is data about a checkpoint; its files and artifacts are not known here.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Literal, Self, get_args

import yaml

from tasks.table import FAMILY_NAMES, TASKS, Family, Task

# tasks that an entry may give a prompt of its own, with the fields of the prompt: the first, if
# required, is in every one
TEMPLATE_FIELDS: dict[str, tuple[str, ...]] = {
    "captioning": ("{language}",),
    "instance_segmentation": ("{phrase}",),
    "region_description": ("{region}",),
    "visual_question_answering": ("{question}", "{language}"),
}
_OPTIONAL_FIELD = "{language}"

Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
Precision = Literal["float32", "int8", "bfloat16", "float16"]

HUB_PREFIX = "hf:"  # prefix of a model named by its repository: hf:owner/name
HUB_SEPARATOR = "--"  # replaces the slash in the id of such a model: owner--name

_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_NOT_IN_ID = re.compile(r"[^a-z0-9.-]+")
_ANY = "*"  # wildcard in the id and source of an entry for many repositories
_OF_BASE = {"aliases", "family", "resolution", "context_window", "precision", "mask_decoder"}


class CatalogError(ValueError):
    """The catalog is invalid; the message has the entry, the key, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TaskOverride:
    """An entry's change to a task of its family; without a template the task is not offered."""

    template: str | None
    has_labels: bool = True  # a label follows the locations of the answer
    separator: str | None = None  # replaces " ; " in a question

    @classmethod
    def parse(cls, entry_id: str, task_id: object, value: object) -> Self:
        """Return the change `value` of the entry; raise `CatalogError`."""
        if not isinstance(task_id, str) or task_id not in TASKS:
            allowed = ", ".join(TASKS)
            raise CatalogError(
                f"{entry_id}: tasks has the unknown task {task_id!r}; allowed are {allowed}"
            )
        if value is None:
            return cls(None)
        fields_of_task = TEMPLATE_FIELDS.get(task_id, ())
        keys: dict[str, type] = {"template": str}
        if task_id == "instance_segmentation":
            keys["labels"] = bool
        if task_id == "visual_question_answering":
            keys["separator"] = str
        row = value if isinstance(value, dict) and fields_of_task else {}
        template = row.get("template")
        are_known = all(isinstance(row[key], keys.get(key, ())) for key in row)
        if not (are_known and isinstance(template, str) and _has_fields(template, fields_of_task)):
            raise CatalogError(
                f"{entry_id}: tasks.{task_id} must be {_allowed_override(task_id, keys)}, not"
                f" {value!r}"
            )
        return cls(template, row.get("labels", True), row.get("separator"))

    def row(self) -> dict[str, object] | None:
        """Return the value that `parse` reads."""
        if self.template is None:
            return None
        row: dict[str, object] = {"template": self.template}
        if not self.has_labels:
            row["labels"] = False
        if self.separator is not None:
            row["separator"] = self.separator
        return row


def _has_fields(template: str, fields_of_task: Sequence[str]) -> bool:
    """Return True if the template has each field once; a language may be missing."""
    counts = {name: template.count(name) for name in fields_of_task}
    return all(
        count == 1 or (count == 0 and name == _OPTIONAL_FIELD) for name, count in counts.items()
    )


def _allowed_override(task_id: str, keys: Collection[str]) -> str:
    if task_id not in TEMPLATE_FIELDS:
        return f"null, or for {', '.join(TEMPLATE_FIELDS)} a mapping with a template"
    required = [name for name in TEMPLATE_FIELDS[task_id] if name != _OPTIONAL_FIELD]
    field_rule = f" that contains {required[0]} once" if required else ""
    others = [name for name in keys if name != "template"]
    return f"null, or {{template: a string{field_rule}{''.join(f', {key}: …' for key in others)}}}"


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
    # the label of a box is one of the names of the request: True for checkpoints that were trained
    # to write it as it was given; others write labels of their own
    forced_names: bool = False
    # PaliGemma's; otherwise it detects all names by one prompt
    one_name_per_prompt: bool = False
    # Florence-2's; otherwise names are sent as they are
    drops_articles: bool = False
    tasks: Mapping[str, TaskOverride] = field(default_factory=dict)
    weights_sha256: str | None = None  # hash of model.safetensors at `revision`, hexadecimal
    # the id of the base, if the source is a LoRA adapter in PEFT's format
    adapter_of: str | None = None
    # other names by which adapters of this checkpoint name their base
    aliases: tuple[str, ...] = ()
    # the tasks that this model offers, in the table's order
    task_ids: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        def is_offered(task: Task) -> bool:
            if task.id in self.tasks:
                return self.tasks[task.id].template is not None
            return self.family in task.families

        offered = tuple(task.id for task in TASKS.values() if is_offered(task))
        object.__setattr__(self, "task_ids", offered)

    def template(self, task_id: str) -> str | None:
        """Return the entry's own prompt template for the task, or None."""
        override = self.tasks.get(task_id)
        return override.template if override else None

    def has_labels(self, task_id: str) -> bool:
        """Return True if objects of the task's answers have labels."""
        override = self.tasks.get(task_id)
        return override is None or override.has_labels


def model_id_of(name: str) -> str:
    """Return the id of a model that is named by it, or by its repository as `hf:owner/name`."""
    is_hub = name.startswith(HUB_PREFIX)
    return hub_model_id(name.removeprefix(HUB_PREFIX)) if is_hub else name


def hub_model_id(repository: str) -> str:
    """Return the id of a repository's model: `owner--name`, in the characters of ids."""
    return _NOT_IN_ID.sub("-", repository.lower().replace("/", HUB_SEPARATOR))


def load_catalog(path: Path, model_ids: Collection[str] = ()) -> dict[str, CatalogEntry]:
    """Read the catalog in file order.

    An entry whose id has a `*` stands for many repositories: it is read once for each id of
    `model_ids` that it matches.

    Raise `CatalogError` for unknown, missing, invalid or duplicate entries.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path} cannot be read as YAML: {error}") from error
    rows = document["models"] if isinstance(document, dict) and [*document] == ["models"] else None
    if not isinstance(rows, list):
        raise CatalogError(f"{path} must contain a list under the single key models")
    entries: dict[str, CatalogEntry] = {}
    bases: dict[str, Mapping[str, object]] = {}
    for row in _expanded(rows, model_ids):
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
    named = {entry.id: entry.id for entry in bases} | {entry.source: entry.id for entry in bases}
    for entry in bases:
        for alias in entry.aliases:
            if (other := named.setdefault(alias, entry.id)) != entry.id:
                raise CatalogError(f"{entry.id}: aliases has {alias!r}, a name of {other}")


def _expanded(rows: Sequence[object], model_ids: Collection[str]) -> Iterator[object]:
    """Yield the rows; of one with a `*`, one for each id that matches."""
    bases = {row.get("adapter_of") for row in rows if isinstance(row, dict)}
    for row in rows:
        if not isinstance(row, dict) or _ANY not in str(row.get("id")):
            yield row
            continue
        if row["id"].count(_ANY) != 1 or str(row.get("source")).count(_ANY) != 1:
            raise CatalogError(f"{row['id']}: id and source must have one {_ANY} each")
        variants = _variants(row)
        for name in variants or ("x",):  # also checked when none matches
            parse_entry(_variant_row(row, name, variants))
        pattern = re.compile(re.escape(str(row["id"])).replace(r"\*", "([a-z0-9-]+)"))
        for model_id in sorted({*model_ids, *filter(None, bases)}):
            if match := pattern.fullmatch(str(model_id)):
                yield _variant_row(row, match[1], variants)


def _variants(row: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    """Return the tasks of each name that may replace the `*`; empty if all names are alike."""
    variants = row.get("variants", {})
    if not isinstance(variants, dict):
        raise CatalogError(f"{row['id']}: variants must map names to tasks; not {variants!r}")
    for name, tasks in variants.items():
        if not isinstance(tasks, dict):
            raise CatalogError(
                f"{row['id']}: variants.{name} must be a mapping of task ids; not {tasks!r}"
            )
    return variants


def _variant_row(
    row: Mapping[str, object], name: str, variants: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """Return the row of one repository, which offers the tasks of its variant only."""
    variant_row = {key: value for key, value in row.items() if key != "variants"}
    for key in ("id", "source"):
        variant_row[key] = str(row[key]).replace(_ANY, name)
    if not variants:
        return variant_row
    if name not in variants:
        raise CatalogError(
            f"{variant_row['id']} is not in the catalog: * of {row['id']} is one of"
            f" {', '.join(variants)}"
        )
    if "instance_segmentation" not in variants[name]:
        variant_row.pop("mask_decoder", None)
    return {**variant_row, "tasks": {**dict.fromkeys(TASKS), **variants[name]}}


def _with_base(
    row: Mapping[str, object], bases: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    """Return the row of an adapter with the keys of its base, which comes before it."""
    entry_id = row.get("id")
    base = row["adapter_of"]
    if not isinstance(base, str) or base not in bases:
        allowed = f"a model before it that is not an adapter: {', '.join(bases)}"
        raise CatalogError(f"{entry_id}: adapter_of must be {allowed}; not {base!r}")
    if fixed := ", ".join(sorted(_OF_BASE & row.keys())):
        raise CatalogError(
            f"{entry_id}: an adapter shares {fixed} with its base {base}; remove the keys"
        )
    if "source" not in row:
        raise CatalogError(f"{entry_id} misses the keys ['source']")
    not_inherited: dict[str, object] = {
        "revision": None,
        "weights_sha256": None,
        "aliases": [],
        "forced_names": False,  # tuned to write labels of its own, perhaps
    }
    return {**bases[base], **not_inherited, **row}


def adapter_entry(
    model_id: str, source: str, row: Mapping[str, object], base: CatalogEntry
) -> CatalogEntry:
    """Return the entry of an adapter outside the catalog; missing keys are the base's.

    Raise `CatalogError`.
    """
    if fixed := sorted({"id", "source"} & row.keys()):
        raise CatalogError(f"{model_id}: {fixed[0]} is not allowed; it follows from the folder")
    adapter_row = {**row, "id": model_id, "source": source, "adapter_of": base.id}
    return parse_entry(_with_base(adapter_row, {base.id: entry_row(base)}))


def entry_row(entry: CatalogEntry) -> dict[str, object]:
    """Return the entry as `parse_entry` reads it, without `adapter_of`."""
    names = [key.name for key in fields(entry) if key.init and key.name != "adapter_of"]
    row = {name: getattr(entry, name) for name in names}
    tasks = {task: override.row() for task, override in entry.tasks.items()}
    return row | {"features": [*entry.features], "aliases": [*entry.aliases], "tasks": tasks}


def parse_entry(row: object) -> CatalogEntry:
    """Return one entry of the catalog; raise `CatalogError`."""
    entry_id = row.get("id") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(entry_id, str) or not _ID.fullmatch(entry_id):
        allowed = "a mapping with an id of lower-case letters, digits, '.' and '-'"
        raise CatalogError(f"an entry must be {allowed}, not {row!r}")
    keys = [key for key in fields(CatalogEntry) if key.init]
    known = {key.name for key in keys}
    if unknown := set(row) - known:
        raise CatalogError(
            f"{entry_id} has unknown keys {sorted(map(str, unknown))}; allowed are {sorted(known)}"
        )
    optional = {
        key.name for key in keys if (key.default, key.default_factory) != (MISSING, MISSING)
    }
    if missing := known - optional - set(row):
        raise CatalogError(f"{entry_id} misses the keys {sorted(missing)}")
    for key, value in row.items():
        is_right, allowed = _RULES.get(key, _NON_BLANK)
        if not is_right(value):
            raise CatalogError(f"{entry_id}: {key} must be {allowed}, not {value!r}")
    tasks = row.get("tasks", {}).items()
    overrides = {task_id: TaskOverride.parse(entry_id, task_id, value) for task_id, value in tasks}
    lists = {"features": tuple(row["features"]), "aliases": tuple(row.get("aliases", ()))}
    entry = CatalogEntry(**{**row, **lists, "tasks": overrides})
    needs = entry.family == "paligemma" and "instance_segmentation" in entry.task_ids
    if needs != (entry.mask_decoder is not None):
        rule = "set for paligemma models that offer instance_segmentation, and for no others"
        raise CatalogError(f"{entry.id}: mask_decoder must be {rule}, not {entry.mask_decoder!r}")
    return entry


def _is_precision(value: object) -> bool:
    """Return True if `value` has one precision for each part on each device.

    Which of them can run is known to the export.
    """
    if not isinstance(value, dict) or value.keys() != {*get_args(Device)}:
        return False
    for parts in value.values():
        if not isinstance(parts, dict) or parts.keys() != {*get_args(Part)}:
            return False
        if not all(precision in get_args(Precision) for precision in parts.values()):
            return False
    return True


_Rule = tuple[Callable[[object], bool], str]  # a test of a value, and what is allowed


def _text(pattern: str, allowed: str, or_null: bool = False) -> _Rule:
    matches = re.compile(pattern).fullmatch

    def is_right(value: object) -> bool:
        return bool(matches(value)) if isinstance(value, str) else or_null and value is None

    return is_right, allowed


def _texts(pattern: str, max_texts: float, allowed: str) -> _Rule:
    is_text, _ = _text(pattern, allowed)

    def is_right(value: object) -> bool:
        return isinstance(value, list) and len(value) <= max_texts and all(map(is_text, value))

    return is_right, allowed


_NON_BLANK = _text(r".*\S.*", "a non-blank string")
_BOOLEAN: _Rule = (lambda value: isinstance(value, bool), "true or false")
_COUNT: _Rule = (lambda value: type(value) is int and value > 0, "a whole number above 0")
_RULES: dict[str, _Rule] = {
    "family": (lambda value: value in FAMILY_NAMES, f"one of {', '.join(FAMILY_NAMES)}"),
    "precision": (
        _is_precision,
        f"a mapping {{device: {{part: precision}}}} of devices {get_args(Device)}, parts"
        f" {get_args(Part)} and precisions {get_args(Precision)}",
    ),
    "parameters": _COUNT,
    "context_window": _COUNT,
    "resolution": _COUNT,
    "features": _texts("(?s:.*)", math.inf, "a list of strings"),
    "aliases": _texts(
        r"\S{1,200}", 20, "a list of at most 20 names of 1 to 200 characters without blanks"
    ),
    "forced_names": _BOOLEAN,
    "one_name_per_prompt": _BOOLEAN,
    "drops_articles": _BOOLEAN,
    "tasks": (lambda value: isinstance(value, dict), "a mapping of task ids"),
    "release_date": _text("[0-9]{4}-[0-9]{2}", "YYYY-MM"),
    "revision": _text(r"[\w.-]+", "null, or a commit, branch or tag", or_null=True),
    "mask_decoder": _text(r".*\S.*", "a non-blank string", or_null=True),
    "weights_sha256": _text("[0-9a-f]{64}", "64 hexadecimal digits", or_null=True),
}
