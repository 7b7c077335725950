"""Adapters in the core: separate models that share the runner of their base, and so its queue."""

import asyncio
from dataclasses import replace

from service.inference.core import Core
from service.schema.rendering import models_json
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.core_calls import codes, compare, run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    context,
    make_core,
    served_models,
)

ADAPTERS = tuple(
    replace(FLORENCE, id=f"tuned-{index}", adapter_of=FLORENCE_ID) for index in range(3)
)
ENTRIES = (FLORENCE, *ADAPTERS, PALIGEMMA)


def test_the_requests_of_a_base_and_its_adapters_share_one_queue() -> None:
    """With a queue each, four requests would be at the runner at the same time."""

    async def largest_number_in_flight() -> int:
        decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
        core = make_core(decoders={FLORENCE_ID: decoder}, entries=ENTRIES, max_running=2)
        asked = [asyncio.create_task(_ask(core, entry.id)) for entry in (FLORENCE, *ADAPTERS)]
        await until(lambda: len(decoder.specs) == 2)
        for _ in range(20):
            await asyncio.sleep(0.001)
        found = len(decoder.specs)
        assert decoder.released is not None
        decoder.released.set()
        await asyncio.gather(*asked)
        assert len(decoder.specs) == len(asked)
        return found

    assert run(largest_number_in_flight()) == 2


def test_an_adapter_waits_for_its_base_and_not_for_another_model() -> None:
    async def answered() -> list[str]:
        decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
        core = make_core(decoders={FLORENCE_ID: decoder}, entries=ENTRIES, max_running=1)
        waiting = [
            asyncio.create_task(_ask(core, model_id)) for model_id in (FLORENCE_ID, ADAPTERS[0].id)
        ]
        await until(lambda: decoder.specs)
        answers = [await _ask(core, PALIGEMMA_ID)]
        assert decoder.released is not None
        decoder.released.set()
        return answers + [await each for each in waiting]

    assert run(answered()) == [PALIGEMMA_ID, FLORENCE_ID, ADAPTERS[0].id]


def test_a_comparison_names_each_adapter_at_the_runner_of_its_base() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    found = codes(
        compare(
            make_core(decoders={FLORENCE_ID: decoder}, entries=ENTRIES), task="object_detection"
        )
    )
    assert found == dict.fromkeys([FLORENCE_ID, *(each.id for each in ADAPTERS)], "ok")
    assert sorted(spec.adapter is None for spec in decoder.specs) == [False, False, False, True]


def test_models_name_the_base_that_they_are_adapters_of() -> None:
    listed = {
        model["id"]: model["adapter_of"] for model in models_json(served_models(*ENTRIES))["data"]
    }
    assert listed == {FLORENCE_ID: None, PALIGEMMA_ID: None} | {
        each.id: FLORENCE_ID for each in ADAPTERS
    }


async def _ask(core: Core, model_id: str) -> str:
    return (await core.predict(PNG, {"task": "ocr", "model": model_id}, context())).model.id
