"""The image of one request: its header is checked at once, its pixels are decoded when a model first wants them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.images import RgbImage, check_image, decode_image
from service.threads import in_thread


class Picture:
    """An image whose pixels are decoded once, for all models of a request."""

    def __init__(self, data: bytes, max_pixels: int, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self._data = data
        self._max_pixels = max_pixels
        self._decoding: asyncio.Task[RgbImage] | None = None

    async def rgb(self) -> RgbImage:
        """Return the decoded image; raise `UnsupportedImage`."""
        if self._decoding is None:
            self._decoding = asyncio.create_task(in_thread(decode_image, self._data, self._max_pixels))
        return await asyncio.shield(self._decoding)

    async def close(self) -> None:
        """Wait for the thread that decodes."""
        if self._decoding is not None:
            await asyncio.wait([self._decoding])


@asynccontextmanager
async def opened(data: bytes, max_pixels: int) -> AsyncIterator[Picture]:
    """Yield the picture; raise `UnsupportedImage` or `ImageTooLarge`."""
    picture = Picture(data, max_pixels, await in_thread(check_image, data, max_pixels))
    try:
        yield picture
    finally:
        await picture.close()
