"""Load the decoder of a family. The only module that imports both families."""

from dataclasses import replace
from pathlib import Path

from runners.decoder.protocol import Decoder
from runners.models.adapters import Adapters
from runners.models.florence2 import Florence2Decoder
from runners.models.paligemma import PaliGemmaDecoder
from runners.models.weights import DecoderWeights
from wire.artifacts.manifest import Family, Precision

_DECODERS: dict[Family, type[Florence2Decoder] | type[PaliGemmaDecoder]] = {
    "florence2": Florence2Decoder,
    "paligemma": PaliGemmaDecoder,
}


def load_decoder(
    folder: Path,
    family: Family,
    precision: Precision,
    device: str,
    max_positions: int = 0,
    weights_of: type[DecoderWeights] = DecoderWeights,
    adapters: Adapters | None = None,
) -> Decoder:
    """Load the decoder of an artifact folder onto `device` ("cpu", "cuda").

    `max_positions` limits the positions of a sequence; 0: the model's limit. `weights_of` reads the
    weights; the export has one that keeps few layers in memory. `adapters` can be added to its
    layers.
    """
    decoder = _DECODERS[family].load(folder, precision, device, weights_of, adapters)
    if max_positions:
        limit = min(max_positions, decoder.shape.num_positions)
        decoder.shape = replace(decoder.shape, num_positions=limit)
    return decoder
