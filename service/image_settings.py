"""Settings of images and of the requests that ask several things about one (`Settings`)."""

from pydantic import BaseModel, Field, field_validator

from service.setting_values import ImagesPlace
from tasks.tiles.grid import MAX_TILES
from wire.host import num_cores

MAX_STEPS = 256


class ImageSettings(BaseModel):
    """Limits on images and analyses, and the store of images."""

    max_image_pixels: int = Field(
        50_000_000, ge=1_000, le=500_000_000, description="Maximum pixels of an image."
    )
    max_image_side_px: int = Field(
        20_000, ge=100, le=65_535, description="Maximum width and height of an image, pixels."
    )
    max_decoded_images: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum images decoded at a time, at least 2, of one client one less; 0: the"
        " number of cores, at most 8. Each needs up to 16 bytes for every pixel.",
    )
    max_steps: int = Field(
        16, ge=1, le=MAX_STEPS, description="Maximum steps of one analysis; more get 400."
    )
    max_step_answers: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Maximum answers of one analysis; a step that would have more is truncated.",
    )
    max_tiles: int = Field(
        64,
        ge=1,
        le=MAX_TILES,
        description="Maximum tiles of an image in one answer; a request for more gets 400, `auto`"
        " takes larger ones.",
    )
    images_folder: ImagesPlace | None = Field(
        None,
        description="Folder of the images that `POST /v1/images` stores, shared by gateways of one"
        " host; for several hosts the `redis(s)://` URL of a Redis or Valkey. Unset: disabled.",
    )
    images_mb: int = Field(
        1_000,
        ge=0,
        le=10_000_000,
        description="Maximum size of stored images, MB; 0: disabled.",
    )
    images_mb_per_key: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Maximum size of the stored images of one API key, MB; 0: all, while no other"
        " key needs it.",
    )
    max_images: int = Field(
        10_000, ge=1, le=100_000, description="Maximum number of stored images."
    )
    images_kept_s: int = Field(
        3_600, ge=1, le=86_400, description="Time for which an image is stored, seconds."
    )

    @field_validator("max_decoded_images")
    @classmethod
    def _check_decoded(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "one client could take the only place; the minimum is 2, and 0 selects the default"
            )
        return value

    @property
    def max_decoded(self) -> int:
        """Maximum images decoded at a time."""
        return self.max_decoded_images or min(max(2, num_cores()), 8)
