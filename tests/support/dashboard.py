"""The committed Grafana dashboard, and its queries as Grafana sends them."""

import json
import re
from typing import Any

from tests.support.export_cli import ROOT

DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/dashboards/diptych.json").read_text(encoding="utf-8")
)
# Values of the variables when everything is selected.
_VARIABLES = {"$model": ".*", "$task": ".*", "$__rate_interval": "1m"}


def queries() -> list[tuple[str, str]]:
    """Return the title and the query of every panel and annotation."""
    pairs = [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]
    for panel in DASHBOARD["panels"]:
        pairs += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return [
        (title, re.sub(r"\$\w+", lambda match: _VARIABLES[match[0]], query))
        for title, query in pairs
    ]


def variable_queries() -> list[tuple[str, str]]:
    """Return the label, and the selector, of every variable that is read from Prometheus."""
    pairs = []
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match
            pairs.append((match[2], match[1]))
    return pairs
