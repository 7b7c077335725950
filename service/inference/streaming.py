"""Answers as they are written: the text of one answer in order, then the answer.

It knows the core and no interface.
"""

import asyncio
from collections.abc import AsyncGenerator

from service.images.url_rules import GivenImage
from service.inference.core import Core, Fields, RequestContext
from service.inference.prediction import Answer


async def answer_events(
    core: Core, image: GivenImage, fields: Fields, context: RequestContext
) -> AsyncGenerator[str | Answer, None]:
    """Yield the text of `Core.predict` as it is written, piece by piece, and at last the answer; raise what it raises.

    The pieces together are the answer's raw text. Closed, it ends the answer.
    """
    texts: asyncio.Queue[str | None] = asyncio.Queue()
    answering = asyncio.create_task(core.predict(image, fields, context, texts.put_nowait))
    answering.add_done_callback(lambda _: texts.put_nowait(None))
    try:
        while (text := await texts.get()) is not None:
            yield text
        yield await answering
    finally:
        answering.cancel()
