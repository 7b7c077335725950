"""Loads the decoder of a family: the only module that imports the families."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from runners.adapters.low_rank import Adapters
from runners.decoder.protocol import Decoder
from runners.models.florence2 import Florence2Decoder
from runners.models.paligemma import PaliGemmaDecoder
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.text import Constraints, GenerationRules, PromptTokenizer
from wire.artifacts.manifest import (
    DECODER_FILE,
    TOKENIZER_FILE,
    Family,
    Precision,
    read_config,
)

logger = logging.getLogger(__name__)

DECODERS: dict[Family, Callable[[DecoderCheckpoint], Decoder]] = {
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
    num_image_tokens: int = 0,
) -> Decoder:
    """Load the decoder of an artifact folder onto `device` ("cpu", "cuda").

    `max_positions` limits a sequence, `num_image_tokens` sizes captured passes; 0: the model's own.
    The export has a `weights_of` that keeps few layers in memory.
    """
    if device == "cuda":
        check_cuda_torch(torch.__version__)
    if device != "cpu":
        # cuDNN's attention plans for every new batch size and length, while all sequences wait
        torch.backends.cuda.enable_cudnn_sdp(False)
    rules = GenerationRules.load(folder)
    checkpoint = DecoderCheckpoint(
        read_config(folder),
        weights_of.open(folder / DECODER_FILE, precision, device, adapters),
        rules,
        PromptTokenizer.load(folder / TOKENIZER_FILE),
        Constraints.load(folder / TOKENIZER_FILE, rules.eos_token_ids),
    )
    decoder = DECODERS[family](checkpoint)
    shape = decoder.shape
    decoder.shape = replace(
        shape,
        num_image_tokens=num_image_tokens or shape.num_image_tokens,
        num_positions=min(max_positions or shape.num_positions, shape.num_positions),
    )
    return decoder


def check_cuda_torch(version: str) -> None:
    """Raise `RuntimeError` if captured graphs of this torch may be wrong; warn of older ones."""
    release = tuple(map(int, version.split(".")[:2]))
    if release >= (2, 15):
        return
    fix = "install requirements-gpu.txt: torch 2.15 or later"
    if release >= (2, 12):
        problem = "may free memory that captured CUDA graphs use (pytorch#193402)"
        raise RuntimeError(f"torch {version} {problem}; {fix}")
    logger.warning("torch %s is not supported on a GPU; %s", version, fix)
