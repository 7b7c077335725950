"""NaN in one sequence fails that one alone, among others that are written in the same steps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.support.export_cli import ModelStore
from tests.support.poisoned_models import POISONED_MODEL, POISONED_POSITION, poisoned_models
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png

SHORT = POISONED_POSITION // 2
LONG = POISONED_POSITION + 50


def ask(service: RunningService, max_new_tokens: int) -> httpx.Response:
    form = {
        "task": "captioning",
        "model": POISONED_MODEL,
        "max_new_tokens": str(max_new_tokens),
        "num_beams": "1",
    }
    return httpx.post(
        f"{service.url}/v1/predict", data=form, files={"image": scene_png()}, timeout=60
    )


def test_an_answer_that_comes_to_nan_fails_and_those_beside_it_do_not(
    exported: ModelStore, tmp_path: Path
) -> None:
    store = poisoned_models(exported, tmp_path / "bentoml")
    with forked_service(
        store.home, tmp_path / "service.log", DIPTYCH_MODELS=POISONED_MODEL
    ) as service:
        alone = ask(service, SHORT).json()["raw_text"]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda tokens: ask(service, tokens), [LONG, SHORT] * 8))
        assert [answer.status_code for answer in answers] == [500, 200] * 8
        assert {answer.json()["error"]["code"] for answer in answers[::2]} == {"internal"}
        assert all("are not finite" in answer.json()["error"]["message"] for answer in answers[::2])
        assert {answer.json()["raw_text"] for answer in answers[1::2]} == {alone}
        assert service.is_ready()
