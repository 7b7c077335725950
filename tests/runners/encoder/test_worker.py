"""A batch with images of several encoders: each image is encoded by its own, and the outcomes keep
their order.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from export.scenes import render_scene, sample_scene
from runners.encoder.features_cache import Encoding
from runners.encoder.session import load_encoder
from runners.encoder.worker import Encoders
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.export_cli import EMBEDDED, ModelStore
from wire.artifacts.manifest import read_manifest
from wire.pixels import Pixels
from wire.runner_messages import Failed

OPTIONS = runner_options(EMBEDDED[0], Settings(encoder_precision="float32"), ())
OWNERS = (None, "tuned", "tuned", None, "tuned")  # one for each image of a batch


def test_images_of_a_mixed_batch_have_the_features_of_their_own_encoder(
    exported: ModelStore,
) -> None:
    """The embedded models stand for a base and an adapter: their encoders take the same input."""
    encoders = Encoders(OPTIONS, "cpu", 1)
    alone = {}
    for adapter, model_id in zip((None, "tuned"), EMBEDDED, strict=True):
        folder = exported.newest(model_id)
        encoders.add(adapter, read_manifest(folder), folder)
        alone[adapter] = load_encoder(folder, precision="float32")
    pixels = [np.asarray(render_scene(sample_scene(seed), 192)) for seed in range(len(OWNERS))]
    batch = [Encoding(image, owner) for image, owner in zip(pixels, OWNERS, strict=True)]
    outcomes = encoders.encode(batch)
    assert [outcome.failed for outcome in outcomes] == [None] * len(batch)
    assert len({outcomes[place].encode_s for place in (1, 2, 4)}) == 1  # one batch
    assert outcomes[0].encode_s == outcomes[3].encode_s != outcomes[1].encode_s
    for encoding in batch:
        expected = alone[encoding.adapter].encode(encoding.pixels[None])[0]
        assert encoding.features is not None
        assert encoding.features.shape == expected.shape
        assert torch.allclose(encoding.features, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
def test_an_encoder_on_cuda_without_cuda_ends_the_start_with_what_is_missing(
    exported: ModelStore,
) -> None:
    folder = exported.newest(EMBEDDED[0])
    encoders = Encoders(replace(OPTIONS, device="cuda"), "cpu", 1)
    with pytest.raises(RuntimeError, match="not on CUDA; install onnxruntime-gpu"):
        encoders.add(None, read_manifest(folder), folder)


def test_a_failed_batch_is_encoded_one_by_one(exported: ModelStore) -> None:
    folder = exported.newest(EMBEDDED[0])
    encoders = Encoders(OPTIONS, "cpu", 1)
    encoders.add(None, read_manifest(folder), folder)
    encoders.add("with encoder", read_manifest(folder), folder)
    assert encoders.workers.keys() == {None, "with encoder"}
    assert len(encoders.watchdogs) == 2
    sizes: list[int] = []

    def encode(pixels: Pixels) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 1 or pixels.max() == 2:
            raise RuntimeError("failed to allocate memory")
        return torch.full((1, 3, 4), float(pixels.max()))

    worker: Any = encoders.workers[None]
    worker._encoder.encode = encode
    batch = [Encoding(np.full((4, 4, 3), value, np.uint8), None) for value in (1, 2, 3)]
    failed = [outcome.failed for outcome in encoders.encode(batch)]
    assert sizes == [3, 1, 1, 1]
    message = "the vision encoder failed: RuntimeError"
    assert failed == [None, Failed(code="internal", message=message), None]
    features = [encoding.features for encoding in batch]
    assert [None if value is None else int(value.max()) for value in features] == [1, None, 3]


def test_an_encoder_that_cannot_encode_ends_the_start(exported: ModelStore) -> None:
    folder = exported.newest(EMBEDDED[0])
    manifest = replace(read_manifest(folder), image_size_wh=(64, 64))  # not that of the graph
    with pytest.raises(Exception, match="invalid dimensions"):
        Encoders(OPTIONS, "cpu", 1).add(None, manifest, folder)
