"""Clients that generators write from the OpenAPI document predict and compare."""

import asyncio
import importlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.middleware import Middleware
from service.http_app import rest_app
from service.web.openapi import openapi_document
from tests.support.export_cli import ROOT
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PALIGEMMA_ID, served_models
from tests.support.http_servers import serving_app
from tests.support.rest_client import OCR, SMALL_PNG, client

TIMEOUT_S = 600  # of a package index that does not answer
LABELS = {"task": "open_vocabulary_detection", "labels": ["red circle"]}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "openapi.json"
    path.write_text(json.dumps(openapi_document(served_models())), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def generated(document: Path) -> Iterator[Any]:
    """Return what imports a module of the client that openapi-python-client writes."""
    packages = ROOT / "build" / "generator"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (pin,) = project["dependency-groups"]["generator"]
    if not (packages / f"{pin.replace('-', '_').replace('==', '-')}.dist-info").exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade")
        subprocess.run([*pip, "--target", packages, pin], check=True, timeout=TIMEOUT_S)
    options = document.with_name("options.yaml")
    options.write_text("post_hooks: []\nproject_name_override: generated\n", encoding="utf-8")
    command = (sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none")
    arguments = ("--path", document, "--config", options, "--output-path", "generated")
    run = subprocess.run(
        [*command, *arguments],
        cwd=document.parent,
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    assert (run.stdout.strip(), run.stderr) == ("Generating generated", "")  # no warning
    sys.path.insert(0, str(document.parent))
    yield importlib.import_module
    sys.path.remove(str(document.parent))


def test_python_client_predicts_and_compares(generated: Any) -> None:
    api = generated("generated.api.default.predict")
    models = generated("generated.models")
    types = generated("generated.types")
    boundary = client().boundary
    transport = httpx.ASGITransport(Middleware(rest_app(boundary), boundary))
    http = generated("generated").Client("http://diptych", httpx_args={"transport": transport})
    file = types.File(io.BytesIO(SMALL_PNG), "a.png")
    detect = models.PredictRequestTask(LABELS["task"])
    forms: list[Any] = [
        models.PredictRequest(task=models.PredictRequestTask.OCR, image=OCR["image"]),
        models.PredictForm(task=models.PredictFormTask.OCR, image=file, constrained=False),
    ]
    detection = models.PredictRequest(task=detect, image=OCR["image"], labels=LABELS["labels"])

    async def predict() -> None:
        for body in forms:
            answer = await api.asyncio(client=http, body=body)
            assert isinstance(answer, models.AnswerJson)
            assert answer.result.text == FLORENCE_ANSWERS["What is the text in the image?"]
        (found, *_) = (await api.asyncio(client=http, body=detection)).result.detections
        assert found.label == "red circle"
        compare = generated("generated.api.default.compare")
        body = models.CompareRequest(task=models.CompareRequestTask.OCR, image=OCR["image"])
        comparison = await compare.asyncio(client=http, body=body)
        assert [a.model for a in comparison.answers] == [FLORENCE_ID, PALIGEMMA_ID]
        refused = models.PredictRequest(task=models.PredictRequestTask.OCR)
        error = await api.asyncio(client=http, body=refused)
        assert error.error.param == "image"

    asyncio.run(predict())


TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./api.ts";

declare const process: { argv: string[] };
const [, , baseUrl, image] = process.argv;
const client = createClient<paths>({ baseUrl });
const body = { task: "open_vocabulary_detection" as const, image, labels: ["red circle"] };
const { data, error } = await client.POST("/v1/predict", { body });
if (!data || !("result" in data) || !("detections" in data.result)) {
  throw new Error(JSON.stringify(error));
}
console.log(data.result.detections[0].label);
// @ts-expect-error: no task of this name
await client.POST("/v1/predict", { body: { task: "guess", image } });
"""
NPM = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3")


@pytest.mark.long
def test_typescript_client_predicts(document: Path) -> None:
    folder = document.parent

    def run(*command: str) -> str:
        return subprocess.check_output(command, cwd=folder, text=True, timeout=TIMEOUT_S)

    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    (folder / "sample.ts").write_text(TYPESCRIPT, encoding="utf-8")
    run("npm", "install", "--silent", "--no-save", "--no-audit", "--no-fund", *NPM)
    run("npx", "openapi-typescript", "openapi.json", "--output", "api.ts")
    options = ("--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck")
    rewritten = ("--rewriteRelativeImportExtensions", "--noUncheckedIndexedAccess", "false")
    run("npx", "tsc", *options, *rewritten, "sample.ts")
    boundary = client().boundary
    with serving_app(Middleware(rest_app(boundary), boundary)) as served:
        assert run("node", "sample.js", served.url, OCR["image"]) == "red circle\n"
