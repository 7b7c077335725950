"""A part of a request's image that is asked about as a separate image, at full resolution."""

from dataclasses import dataclass, replace

from blake3 import blake3

from imaging.files import PixelBox
from service.images.decoding import LazyImage
from wire.artifacts.manifest import Manifest
from wire.pixels import Pixels


@dataclass(slots=True)
class ImageView(LazyImage):
    """The pixels of `box` in an open image, `whole`; its key is that of the file and the box."""

    whole: LazyImage
    box: PixelBox

    @classmethod
    def of(cls, whole: LazyImage, box: PixelBox) -> "ImageView":
        """Return the view of an image, or of another view, which is open."""
        left, top, right, bottom = box
        if isinstance(whole, ImageView):  # a part of a part is a part of the whole
            across, down, _, _ = whole.box
            box = (left + across, top + down, right + across, bottom + down)
            return cls.of(whole.whole, box)
        view = cls(whole.data, whole.decoder, whole.client, whole, box)
        digest = blake3(whole.header.digest + f"crop {left} {top} {right} {bottom}".encode())
        size_wh = (right - left, bottom - top)
        view.header = replace(whole.header, size_wh=size_wh, digest=digest.digest())
        view.open_s = 0.0  # the file has been opened once
        return view

    @property
    def is_light(self) -> bool:
        return self.whole.is_light

    async def pixels(self, manifest: Manifest, crop: PixelBox | None = None) -> Pixels:
        """Return the pixels (H, W, 3) of the part at a model's input size."""
        assert crop is None, "`of` returns a part of a part"
        return await self.whole.pixels(manifest, self.box)
