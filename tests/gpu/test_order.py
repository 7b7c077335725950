"""The order of the device's work while encoder and decoder serve: nothing races, nothing waits for
more than it reads.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.features_cache import Encoding
from runners.kv_cache import decoder_stream, use_decoder_stream
from tests.gpu.card import Card
from tests.gpu.counts import counted, counts
from tests.gpu.models import Model, requests, scheduler, with_long_prompt, write
from tests.gpu.test_counts import new_encoder
from tests.support.passes import make_endless

pytestmark = pytest.mark.gpu

NUM_SLOTS = 8
MAX_CAPTURE_BYTES = 100_000_000  # with the cache of the slots
# Four replays are the encoder's; each of six images is staged twice.
SERVED = {
    "replays": 17,
    "preferred": 13,
    "to_device": 25,
    "to_host": 8,
    "waits": 28,
    "events": 18,
}


def order(model: Model) -> dict[str, Any]:
    """Serve with encoder and decoder; return the work, and the memory of captures."""
    early = torch.ones(4, device="cuda").clone()  # in the default stream
    use_decoder_stream("cuda")
    early.clone()
    encoder = new_encoder(model)
    decoder = model.decoder()
    make_endless(decoder)
    batches: list[LiveBatch] = []
    captured = counted(lambda: batches.append(LiveBatch(decoder, NUM_SLOTS)))
    (batch,) = batches
    images = list(model.images(3))

    def serve() -> None:
        features = _encode(encoder, images)
        _generate(decoder, batch, features)

    serve()
    served = counted(serve)
    _reload(batch)
    with scheduler(decoder, 2) as running:
        pending = requests(decoder, [model.features()], 2)
        scheduled = counted(lambda: write(running, pending))
    races = counts()["races"]
    return {"served": served, "scheduled": scheduled, "races": races, "captured": captured}


def _encode(encoder: Any, images: list[Any]) -> list[torch.Tensor]:
    """Encode two batches, whose images are all staged before."""
    first = _staged(encoder, images, 0)
    second = _staged(encoder, images, len(images))
    encoder.encode(first)
    assert not encoder._encoder._memory._copied[5].query(), (
        "a batch waits for the next one's images"
    )
    encoder.encode(second)
    features = []
    for encoding in first + second:
        assert encoding.features is not None
        features.append(encoding.features)
    return features


def _staged(encoder: Any, images: list[Any], first_place: int) -> list[Encoding]:
    encodings = []
    for place, image in enumerate(images, first_place):
        encoding = Encoding(image, None, place=place)
        encoder.stage(encoding).result()  # replaced before it is encoded
        encoding.staged = encoder.stage(encoding)
        encoding.staged.result()
        encodings.append(encoding)
    return encodings


def _generate(decoder: Decoder, batch: LiveBatch, features: list[torch.Tensor]) -> None:
    """Admit rows of each kind and an eager prefill, and step; a row ends while a pass runs."""
    pending = requests(decoder, features, 12)
    constraint = decoder.text.constraints.get("start: <[0-5]>*")
    pending[1] = replace(pending[1], temperature=1.0, top_p=0.9, seed=1)
    pending[2] = replace(pending[2], constraint=constraint)
    pending[3] = replace(pending[3], num_beams=2)
    _admit(decoder, batch, pending)
    _admit(decoder, batch, [with_long_prompt(pending[0])])
    for _ in range(3):
        batch.step()
        assert not decoder_stream().query(), "a step waits for the pass that it launched ahead"
    batch.slots.by_slot[0].finish_reason = "stop"
    batch.remove_ended()  # while a pass is in flight, which must not be awaited
    batch.step()
    batch.clear()


def _admit(decoder: Decoder, batch: LiveBatch, pending: list[SequenceRequest]) -> None:
    batch.admit([start_sequence(request, decoder.rules) for request in pending])


def _reload(batch: LiveBatch) -> None:
    """Load tokens twice, as after an error before their choice."""
    engine: Any = batch._engine
    engine.decode([[5]] * 6)
    engine.decode([[6]] * 6)
    torch.cuda.synchronize()


def test_serving_waits_for_what_it_reads(fake_card: Card) -> None:
    """Also: what is copied is pinned, all graphs share one pool of memory, and the decoder has
    priority.
    """
    result = fake_card.run(order, "florence-2-mini")
    assert result["races"] == 0
    served = result["served"]
    assert served == served | SERVED
    assert not {"pageable", "waits_for_all"} & served.keys()
    assert result["scheduled"]["preferred"] == result["scheduled"]["replays"] > 0
    assert 0 < result["captured"]["num_bytes"] <= MAX_CAPTURE_BYTES
