"""Calls of Label Studio to the ML backend in this process, and the results in their answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tests.support.fake_service import (
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    data_url,
)
from tests.support.label_studio_config import labelled, view
from tests.support.rest_client import Client, client

PATH = "/integrations/label-studio"


VERSIONS = [f"{FLORENCE_ID}@00000000", f"{PALIGEMMA_ID}@00000000"]


RED_CIRCLE = view(labelled("RectangleLabels", "red circle"))


CAPTION = '<TextArea name="caption" toName="image"/>'


def post(
    name: str,
    body: Mapping[str, Any],
    api: Client | None = None,
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    return (api or client()).send("POST", f"{path}/{name}", json=body, headers=headers)


def results(
    config: str,
    *images: object,
    api: Client | None = None,
    path: str = PATH,
    context: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Return the results of a call for tasks with these images, or one with a good image."""
    tasks = [
        {"id": number, "data": {"image": image}}
        for number, image in enumerate(images or [data_url(PNG)])
    ]
    body = {
        "tasks": tasks,
        "project": "1.2",
        "label_config": config,
        "params": {"context": context},
    }
    response = post("predict", body, api, path)
    assert response.status_code == 200, response.text
    found: list[Any] = response.json()["results"]
    assert len(found) == len(tasks)
    return found


def values(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(each["from_name"], each["type"], each["value"]) for each in found]
