"""The committed Grafana dashboard: its panels, and its queries as Grafana sends them."""

import json
import re
from typing import Any

from tests.support.export_cli import ROOT

DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/dashboards/diptych.json").read_text(encoding="utf-8")
)
# What Grafana puts in the place of the variables when everything is chosen.
_VARIABLES = {"$model": ".*", "$task": ".*", "$__rate_interval": "1m"}
_VARIABLE = re.compile(r"\$\w+")


def panels() -> list[dict[str, Any]]:
    """Return every panel that shows something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return the title of the panel, and the query, of everything that is asked."""
    asked = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    asked += [(each["name"], each["expr"]) for each in DASHBOARD["annotations"]["list"]]
    return [
        (title, _VARIABLE.sub(lambda found: _VARIABLES[found[0]], query)) for title, query in asked
    ]


def variable_queries() -> list[tuple[str, str]]:
    """Return the label, and the selector, of every variable that is read from Prometheus."""
    variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    found = [
        re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"]) for each in variables
    ]
    return [(match[2], match[1]) for match in found if match]
