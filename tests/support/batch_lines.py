"""Input lines of batches over fake models."""

import json
from typing import Any

from service.batches.wire import Endpoint
from tests.support.fake_service import FLORENCE_ID
from tests.support.rest_client import OCR

PREDICT: Endpoint = "/v1/predict"
CHAT: Endpoint = "/v1/chat/completions"
CHAT_BODY = {
    "model": FLORENCE_ID,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<OCR>"},
                {"type": "image_url", "image_url": {"url": OCR["image"]}},
            ],
        }
    ],
}


def line(
    custom_id: object = "a", url: str = PREDICT, body: object = OCR, **fields: Any
) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)
