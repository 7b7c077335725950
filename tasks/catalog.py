"""The models that can be served, strictly parsed from catalog.yaml.

An entry is data about a checkpoint; its files and artifacts are not known here.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from tasks.table import TASKS, Family, Task

Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
Precision = Literal["float32", "int8", "bfloat16", "float16"]

HUB_PREFIX = "hf:"  # prefix of a model named by its repository: hf:owner/name
HUB_SEPARATOR = "--"  # replaces the slash in the id of such a model: owner--name

# tasks that an entry may give a prompt of its own: the keys of the change, and the field that its
# template must have once; it may have a language, too
_OWN_PROMPTS: dict[str, tuple[dict[str, type], str]] = {
    "captioning": ({"template": str}, ""),
    "instance_segmentation": ({"template": str, "labels": bool}, "{phrase}"),
    "region_description": ({"template": str}, "{region}"),
    "visual_question_answering": ({"template": str, "separator": str}, "{question}"),
}
_NOT_IN_ID = re.compile(r"[^a-z0-9.-]+")
_ANY = "*"  # wildcard in the id and source of an entry for many repositories
_MAX_ITEMS = 20  # of a list
_OF_BASE = {"aliases", "family", "resolution", "context_window", "precision", "mask_decoder"}


class CatalogError(ValueError):
    """The catalog is invalid; the message has the entry, the key, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TaskOverride:
    """An entry's change to a task of its family; without a template the task is not offered."""

    template: str | None
    labels: bool = True  # a label follows the locations of the answer
    separator: str | None = None  # replaces " ; " in a question


# Texts of a form: a regular expression, and what it allows
_Id = Annotated[str, r"[a-z0-9][a-z0-9.-]*", "lower-case letters, digits, '.' and '-'"]
_Alias = Annotated[str, r"\S{1,200}", "a name of 1 to 200 characters without blanks"]
_Month = Annotated[str, r"[0-9]{4}-[0-9]{2}", "YYYY-MM"]
_Revision = Annotated[str, r"[\w.-]+", "a commit, branch or tag"]
_Sha256 = Annotated[str, r"[0-9a-f]{64}", "64 hexadecimal digits"]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model: a checkpoint of a family. The types of its fields are the rules of the file."""

    id: _Id
    family: Family
    source: str  # folder relative to the root of the repository, or hub id
    revision: _Revision | None  # of a hub source; default: main
    organization: str
    category: str
    modality: str
    license: str
    release_date: _Month
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
    weights_sha256: _Sha256 | None = None  # hash of model.safetensors at `revision`
    # the id of the base, if the source is a LoRA adapter in PEFT's format
    adapter_of: str | None = None
    # other names by which adapters of this checkpoint name their base
    aliases: tuple[_Alias, ...] = ()
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
        override = self.tasks.get(task_id)
        return override.template if override else None

    def has_labels(self, task_id: str) -> bool:
        """Return True if objects of the task's answers have labels."""
        override = self.tasks.get(task_id)
        return override is None or override.labels


def model_id_of(name: str) -> str:
    """Return the id of a model that is named by it, or by its repository as `hf:owner/name`."""
    is_hub = name.startswith(HUB_PREFIX)
    return hub_model_id(name.removeprefix(HUB_PREFIX)) if is_hub else name


def hub_model_id(repository: str) -> str:
    """Return the id of a repository's model: `owner--name`, in the characters of ids."""
    return _NOT_IN_ID.sub("-", repository.lower().replace("/", HUB_SEPARATOR))


def load_catalog(path: Path, model_ids: Collection[str] = ()) -> dict[str, CatalogEntry]:
    """Read the catalog in file order; raise `CatalogError`.

    An entry whose id has a `*` is read once for each id of `model_ids` that it matches.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogError(f"{path} cannot be read as YAML: {error}") from error
    rows = document["models"] if isinstance(document, dict) and [*document] == ["models"] else None
    if not isinstance(rows, list):
        raise CatalogError(f"{path} must contain a list under the single key models")
    entries: dict[str, CatalogEntry] = {}
    bases: dict[str, CatalogEntry] = {}
    for row in _expanded(rows, model_ids):
        if isinstance(row, dict) and "adapter_of" in row:
            entry = _entry_of_adapter(row, bases)
        else:
            entry = parse_entry(row)
            bases[entry.id] = entry
        if entry.id in entries:
            raise CatalogError(f"{path} has more than one entry {entry.id!r}")
        entries[entry.id] = entry
    names: dict[str, str] = {}
    for base in bases.values():
        names |= {base.id: base.id, base.source: base.id}
    for base in bases.values():
        for alias in base.aliases:
            if (other := names.setdefault(alias, base.id)) != base.id:
                raise CatalogError(f"{base.id}: aliases has {alias!r}, a name of {other}")
    return entries


def _expanded(rows: Sequence[object], model_ids: Collection[str]) -> Iterator[object]:
    """Yield the rows; of one with a `*`, one for each id that matches."""
    names = {*model_ids, *(row.get("adapter_of") for row in rows if isinstance(row, dict))}
    for row in rows:
        if not isinstance(row, dict) or _ANY not in str(row.get("id")):
            yield row
            continue
        if row["id"].count(_ANY) != 1 or str(row.get("source")).count(_ANY) != 1:
            raise CatalogError(f"{row['id']}: id and source must have one {_ANY} each")
        variants = row.get("variants", {})
        tasks = variants.values() if isinstance(variants, dict) else [None]
        if not all(isinstance(task, dict) for task in tasks):
            allowed = "must map names to mappings of task ids"
            raise CatalogError(f"{row['id']}: variants {allowed}; not {variants!r}")
        for name in variants or ("x",):  # also checked when none matches
            parse_entry(_variant_row(row, name, variants))
        pattern = re.compile(re.escape(str(row["id"])).replace(r"\*", "([a-z0-9-]+)"))
        for model_id in sorted(filter(None, names)):
            if match := pattern.fullmatch(str(model_id)):
                yield _variant_row(row, match[1], variants)


def _variant_row(
    row: Mapping[str, Any], name: str, variants: Mapping[str, Mapping[str, object]]
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


def adapter_entry(
    model_id: str, source: str, row: Mapping[str, object], base: CatalogEntry
) -> CatalogEntry:
    """Return the entry of an adapter outside the catalog, over its base's; raise `CatalogError`."""
    if fixed := sorted({"id", "source"} & row.keys()):
        raise CatalogError(f"{model_id}: {fixed[0]} is not allowed; it follows from the folder")
    row = {**row, "id": model_id, "source": source, "adapter_of": base.id}
    return _entry_of_adapter(row, {base.id: base})


def _entry_of_adapter(row: Mapping[str, Any], bases: Mapping[str, CatalogEntry]) -> CatalogEntry:
    """Return the entry of an adapter, whose other keys are those of a base before it."""
    entry_id = row.get("id")
    base = row["adapter_of"]
    if not isinstance(base, str) or base not in bases:
        allowed = f"a model before it that is not an adapter: {', '.join(bases)}"
        raise CatalogError(f"{entry_id}: adapter_of must be {allowed}; not {base!r}")
    if fixed := ", ".join(sorted(_OF_BASE & row.keys())):
        raise CatalogError(
            f"{entry_id}: an adapter shares {fixed} with its base {base}; remove the keys"
        )
    values: dict[str, Any] = {"revision": None, "weights_sha256": None, "aliases": ()}
    values["forced_names"] = False  # tuned to write labels of its own, perhaps
    values |= _parsed_values(row, {"id", "source"})
    return _checked(replace(bases[base], **values))


def entry_row(entry: CatalogEntry) -> dict[str, object]:
    """Return the entry as `parse_entry` reads it, without `adapter_of`."""
    row = {key: value for key, value in asdict(entry).items() if key in _RULES}
    del row["adapter_of"]
    unchanged = asdict(TaskOverride(None))
    for task_id, override in row["tasks"].items():
        changes = {key: value for key, value in override.items() if value != unchanged[key]}
        row["tasks"][task_id] = changes or None
    return row | {"features": [*entry.features], "aliases": [*entry.aliases]}


def parse_entry(row: object) -> CatalogEntry:
    """Return one entry of the catalog; raise `CatalogError`."""
    return _checked(CatalogEntry(**_parsed_values(row, _REQUIRED)))


def _checked(entry: CatalogEntry) -> CatalogEntry:
    needs = entry.family == "paligemma" and "instance_segmentation" in entry.task_ids
    if needs != (entry.mask_decoder is not None):
        rule = "set for paligemma models that offer instance_segmentation, and for no others"
        raise CatalogError(f"{entry.id}: mask_decoder must be {rule}, not {entry.mask_decoder!r}")
    return entry


def _parsed_values(row: object, required: Collection[str]) -> dict[str, Any]:
    entry_id = row.get("id") if isinstance(row, dict) else None
    is_id, allowed = _RULES["id"]
    if not isinstance(row, dict) or not is_id(entry_id):
        raise CatalogError(f"an entry must be a mapping with an id of {allowed}, not {row!r}")
    if unknown := set(row) - _RULES.keys():
        names = sorted(map(str, unknown))
        raise CatalogError(f"{entry_id} has unknown keys {names}; allowed are {sorted(_RULES)}")
    if missing := set(required) - set(row):
        raise CatalogError(f"{entry_id} misses the keys {sorted(missing)}")
    values: dict[str, Any] = {}
    overrides: dict[str, TaskOverride] = {}
    for key, value in row.items():
        is_right, allowed = _RULES[key]
        if not is_right(value):
            raise CatalogError(f"{entry_id}: {key} must be {allowed}, not {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    for task_id, value in values.get("tasks", {}).items():
        overrides[task_id] = _override(row["id"], task_id, value)
    return values | {"tasks": overrides} if "tasks" in values else values


def _override(entry_id: str, task_id: object, value: object) -> TaskOverride:
    if not isinstance(task_id, str) or task_id not in TASKS:
        allowed = ", ".join(TASKS)
        message = f"tasks has the unknown task {task_id!r}; allowed are {allowed}"
        raise CatalogError(f"{entry_id}: {message}")
    if value is None:
        return TaskOverride(None)
    types, required = _OWN_PROMPTS.get(task_id, ({}, ""))
    row = value if isinstance(value, dict) else {}
    template = row.get("template")
    are_known = all(isinstance(row[key], types.get(key, ())) for key in row)
    if are_known and isinstance(template, str):
        has_field = not required or template.count(required) == 1
        if has_field and template.count("{language}") <= 1:
            return TaskOverride(**row)
    rule = f" that contains {required} once" if required else ""
    others = "".join(f", {key}: …" for key in types if key != "template")
    allowed = f"{{template: a string{rule}{others}}}"
    if not types:
        allowed = f"for {', '.join(_OWN_PROMPTS)} a mapping with a template"
    raise CatalogError(f"{entry_id}: tasks.{task_id} must be null, or {allowed}, not {value!r}")


_Rule = tuple[Callable[[object], bool], str]  # a test of a value, and what is allowed


def _rule(hint: Any) -> _Rule:
    options = get_args(hint)
    if type(None) in options:
        is_right, allowed = _rule(options[0])
        return lambda value: value is None or is_right(value), f"null, or {allowed}"
    if get_origin(hint) is Annotated:
        _, pattern, allowed = options
        return lambda v: isinstance(v, str) and bool(re.fullmatch(pattern, v)), allowed
    if get_origin(hint) is Literal:
        return lambda value: value in options, f"one of {', '.join(options)}"
    if get_origin(hint) is tuple:
        is_item, allowed = _rule(options[0])

        def is_list(value: object) -> bool:
            return isinstance(value, list) and len(value) <= _MAX_ITEMS and all(map(is_item, value))

        return is_list, f"a list of at most {_MAX_ITEMS}, each {allowed}"
    if get_origin(hint) is Mapping and (keys := get_args(options[0])):
        is_item, allowed = _rule(options[1])

        def is_mapping(value: object) -> bool:
            if not isinstance(value, dict) or value.keys() != {*keys}:
                return False
            return all(map(is_item, value.values()))

        return is_mapping, f"a mapping of {' and '.join(keys)} to {allowed}"
    return _RULES_OF_TYPES[get_origin(hint) or hint]


_RULES_OF_TYPES: dict[object, _Rule] = {
    str: (lambda v: isinstance(v, str) and bool(v.strip()), "a non-blank string"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    Mapping: (lambda value: isinstance(value, dict), "a mapping of task ids"),
}
_HINTS = get_type_hints(CatalogEntry, include_extras=True)
_RULES: dict[str, _Rule] = {}
_REQUIRED = set[str]()
for _key in fields(CatalogEntry):
    if _key.init:
        _RULES[_key.name] = _rule(_HINTS[_key.name])
        if _key.default is MISSING and _key.default_factory is MISSING:
            _REQUIRED.add(_key.name)
