"""Schemas of the fields that deploy/kubernetes uses of resources that kubernetes-validate has none
of.

Written by hand from their documentation, so they hold spelling and types, not everything that an
operator checks:
    KEDA 2.17: reference/scaledobject-spec, scalers/prometheus, scalers/cpu
    Prometheus operator: api-reference/api, ServiceMonitorSpec and Endpoint
"""

from typing import Any

Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    properties = required | (optional or {})
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


_TEXT: Schema = {"type": "string", "minLength": 1}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_NUMBER: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?$"}  # KEDA's metadata are texts
_LABELS: Schema = {"type": "object", "additionalProperties": _TEXT}
_SELECTOR: Schema = _object({"matchLabels": _LABELS})
_METADATA: Schema = _object({"name": _TEXT, "namespace": _TEXT}, {"labels": _LABELS})

_SCALE_DOWN: Schema = _object({"scaleDown": _object({"stabilizationWindowSeconds": _COUNT})})
_PROMETHEUS: Schema = _object(
    {
        "type": {"const": "prometheus"},
        "metadata": _object(
            {
                "serverAddress": {"type": "string", "pattern": "^http://"},
                "query": _TEXT,
                "threshold": _NUMBER,
            },
            {"ignoreNullValues": {"enum": ["true", "false"]}},
        ),
    }
)
_CPU: Schema = _object(
    {
        "type": {"const": "cpu"},
        "metricType": {"enum": ["Utilization"]},
        "metadata": _object({"value": _NUMBER}, {"containerName": _TEXT}),
    }
)
_BEHAVIOURS = ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
_SCALED_OBJECT = _object(
    {
        "scaleTargetRef": _object({"name": _TEXT}),
        "triggers": {"type": "array", "minItems": 1, "items": {"anyOf": [_PROMETHEUS, _CPU]}},
    },
    {
        "pollingInterval": _COUNT,
        "minReplicaCount": _COUNT,
        "maxReplicaCount": _COUNT,
        "fallback": _object(
            {"failureThreshold": _COUNT, "replicas": _COUNT}, {"behavior": {"enum": _BEHAVIOURS}}
        ),
        "advanced": _object({"horizontalPodAutoscalerConfig": _object({"behavior": _SCALE_DOWN})}),
    },
)
_RELABELING = _object({"targetLabel": _TEXT, "replacement": _TEXT})
_ENDPOINT = _object(
    {"port": _TEXT, "path": _TEXT, "interval": {"type": "string", "pattern": r"^\d+s$"}},
    {"relabelings": {"type": "array", "items": _RELABELING}},
)
_SERVICE_MONITOR = _object(
    {"selector": _SELECTOR, "endpoints": {"type": "array", "minItems": 1, "items": _ENDPOINT}},
    {"jobLabel": _TEXT},
)


def _resource(api_version: str, kind: str, spec: Schema) -> Schema:
    return _object(
        {
            "apiVersion": {"const": api_version},
            "kind": {"const": kind},
            "metadata": _METADATA,
            "spec": spec,
        }
    )


RESOURCES: dict[str, Schema] = {
    "ScaledObject": _resource("keda.sh/v1alpha1", "ScaledObject", _SCALED_OBJECT),
    "ServiceMonitor": _resource("monitoring.coreos.com/v1", "ServiceMonitor", _SERVICE_MONITOR),
}
