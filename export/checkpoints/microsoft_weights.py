"""The weights of Florence-2 in Microsoft's form, under transformers' names.

`image_projection` is transposed. The output head and the embeddings of encoder and decoder may be
stored beside the shared embeddings, which they equal. Rows are added for `<image>` and rounding.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.errors import SourceError
from wire.artifacts.microsoft_names import transformers_name

_SHARED = "model.language_model.shared.weight"
_EMBEDDINGS = (
    "language_model.model.shared.weight",
    "language_model.model.encoder.embed_tokens.weight",
    "language_model.model.decoder.embed_tokens.weight",
    "language_model.lm_head.weight",
)
_LOGITS_BIAS = "language_model.final_logits_bias"
_IMAGE_PROJECTION = "image_projection"
_ROWS_MULTIPLE = 64


def write_weights(name: str, files: Sequence[Path], num_tokens: int, output: Path) -> int:
    """Write all weights under transformers' names; return the number of rows of the embeddings.

    `num_tokens` are the tokenizer's, `<image>` included. Raise `SourceError`.
    """
    stored = dict[str, Tensor]()
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            stored |= {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    bias = stored.pop(_LOGITS_BIAS, None)
    if bias is not None and bias.any():
        raise SourceError(f"{name} has a {_LOGITS_BIAS} that is not zero; Florence-2 has none")
    embeddings = _tied_embeddings(name, stored)
    if _IMAGE_PROJECTION not in stored:
        raise SourceError(
            f"{name} lacks {_IMAGE_PROJECTION}: its configuration is Microsoft's, its weights are"
            " not; set vision_config.model_type to florence_vision if transformers wrote them"
        )
    stored[_IMAGE_PROJECTION] = stored[_IMAGE_PROJECTION].T
    weights = {transformers_name(key): tensor.contiguous() for key, tensor in stored.items()}
    weights[_SHARED] = _resized(name, embeddings, num_tokens)
    save_file(weights, output, metadata={"format": "pt"})
    return len(weights[_SHARED])


def _tied_embeddings(name: str, stored: dict[str, Tensor]) -> Tensor:
    """Remove every copy of the embeddings from `stored`; return one.

    Raise `SourceError` if they differ.
    """
    copies = {key: stored.pop(key) for key in _EMBEDDINGS if key in stored}
    if not copies:
        raise SourceError(f"{name} lacks {_EMBEDDINGS[0]}")
    first, *others = copies
    for other in others:
        if not torch.equal(copies[first], copies[other]):
            raise SourceError(
                f"{other} of {name} differs from {first}, to which Florence-2 ties it: an adapter"
                " of lm_head was merged into one of both; export the base and serve the adapter"
            )
    return copies[first]


def _resized(name: str, embeddings: Tensor, num_tokens: int) -> Tensor:
    """Return the embeddings with rows for `num_tokens`, rounded up.

    A new row is the mean of all: its logit is the mean of the logits, so it is never chosen.
    """
    num_rows, _ = embeddings.shape
    if num_rows < num_tokens - 1:  # all but <image>
        raise SourceError(
            f"{name} has embeddings of {num_rows} tokens; its tokenizer has {num_tokens - 1}: copy"
            " the tokenizer that was saved with the weights"
        )
    wanted = max(num_rows, -(-num_tokens // _ROWS_MULTIPLE) * _ROWS_MULTIPLE)
    mean = embeddings.float().mean(0, keepdim=True).to(embeddings.dtype)
    return torch.cat([embeddings, mean.expand(wanted - num_rows, -1)])
