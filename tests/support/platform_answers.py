"""Compares the answers of two platforms, in float32, to the same twenty questions for each embedded
model.

    python -m tests.support.platform_answers record FILE     starts the service and writes FILE
    python -m tests.support.platform_answers compare FILE    starts it by `make serve`, sends the
                                                             questions of FILE, prints differences

A question is of the load test's mix. FILE contains its image, so only the answer depends on the
platform. The exit status is 1 after a difference.
"""

import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from loadtest.load.traffic.questions import Questions
from loadtest.load.traffic.traffic_mix import read_mix
from tests.support.export_cli import EMBEDDED, ROOT
from tests.support.running_service import OPEN, SERVICE, running_service

NUM_QUESTIONS = 20
MIX = ROOT / "loadtest" / "load" / "traffic_mix.yaml"
SETTINGS = {
    "DIPTYCH_ENCODER_PRECISION": "float32",
    "DIPTYCH_DECODER_PRECISION": "float32",
    "DIPTYCH_REQUEST_TIMEOUT_S": "600",  # emulated processors are slow
}
_COMMANDS = {"record": SERVICE, "compare": ("make", "serve")}
_START_TIMEOUT_S = 1800

Row = dict[str, Any]


def main(action: str, file: Path) -> int:
    """Record or compare; return the exit status."""
    log = file.with_suffix(".log")
    command = _COMMANDS[action]
    started_s = time.monotonic()
    with (
        running_service(
            ROOT / ".bentoml", log, OPEN, command, _START_TIMEOUT_S, **SETTINGS
        ) as service,
        httpx.Client(base_url=service.url, timeout=600, trust_env=False) as client,
    ):
        print(f"ready after {time.monotonic() - started_s:.1f} s", flush=True)
        if action == "compare":
            return compare(client, json.loads(file.read_text(encoding="utf-8")))
        rows = [row | {"answer": ask(client, row)} for row in questions(client)]
        file.write_text(json.dumps(rows), encoding="utf-8")
    return 0


def questions(client: httpx.Client) -> Iterator[Row]:
    """Yield as many questions of each embedded model."""
    listed = client.get("/v1/tasks").raise_for_status().json()
    mix = Questions(read_mix(MIX), listed, random.Random(0))
    missing = Counter(dict.fromkeys(EMBEDDED, NUM_QUESTIONS))
    while missing.total():
        question = mix.next("rest")
        if missing[question.model]:
            missing[question.model] -= 1
            image = base64.b64encode(question.image.jpeg).decode()
            yield {"fields": question.form_fields(), "image": image}


def ask(client: httpx.Client, row: Row) -> Row:
    """Return what two platforms must agree on: the text, which has all tokens, and their number."""
    files = {"image": base64.b64decode(row["image"])}
    answer = client.post("/v1/predict", data=row["fields"], files=files).raise_for_status().json()
    compared = ("raw_text", "finish_reason", "usage")
    return {name: answer[name] for name in compared}


def compare(client: httpx.Client, rows: list[Row]) -> int:
    """Print a line for each different answer, then the number of equal ones by model."""
    equal = Counter(dict.fromkeys(EMBEDDED, 0))
    num_tokens = Counter[str]()
    started_s = time.monotonic()
    for row in rows:
        model = row["fields"]["model"]
        expected = row["answer"]
        answer = ask(client, row)
        equal[model] += answer == expected
        num_tokens[model] += expected["usage"]["generated_tokens"]
        if answer != expected:
            print(f"{row['fields']}: expected {expected}, got {answer}", flush=True)
    for model, number in equal.items():
        print(f"{model}: {number} of {NUM_QUESTIONS} answers equal, {num_tokens[model]} tokens")
    print(f"{len(rows)} answers in {time.monotonic() - started_s:.1f} s", flush=True)
    return int(equal.total() != len(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
