"""The table of settings in Markdown, for docs/settings.md."""

from service.settings import Settings, variable


def settings_table() -> str:
    """Return the table of settings in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{variable(name)}` | {_shown(field.default)} | {field.description}{_range(name)} |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return "unset" if default in (None, ()) else f"`{text.lower() if isinstance(default, bool) else text}`"


def _range(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return f" One of {', '.join(schema['enum'])}."
    return f" {schema['minimum']} to {schema['maximum']}." if "minimum" in schema else ""
