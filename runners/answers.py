"""Between messages and sequences: what the gateway asks for becomes ids, what was written becomes text."""

import time
from typing import Any

from torch import Tensor

from runners.generation import Decoder
from runners.messages import Failed, SequenceSpec, Written
from runners.scheduler import WrittenSequence
from runners.sequences import SequenceError, SequenceRequest, SequenceTooLong

# Used where neither the request nor the checkpoint's generation_config says; Florence-2's model card asks for 1024.
DEFAULT_MAX_NEW_TOKENS = 1024


def to_request(decoder: Decoder[Any], image_features: Tensor, spec: SequenceSpec) -> SequenceRequest:
    """Return the request for `spec` over `image_features` (N, C); raise `SequenceTooLong` if it cannot fit."""
    prompt_ids = decoder.prompt_ids(spec.segments)
    limit = decoder.max_new_tokens(len(image_features) + len(prompt_ids))
    if spec.max_new_tokens is not None and spec.max_new_tokens > limit:
        raise SequenceTooLong(f"max_new_tokens is {spec.max_new_tokens}; after this prompt up to {limit} fit")
    wanted = spec.max_new_tokens or decoder.rules.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    return SequenceRequest(
        image_features,
        prompt_ids,
        max_new_tokens=min(wanted, limit),
        temperature=spec.temperature,
        seed=spec.seed,
        top_p=spec.top_p,
        num_beams=_num_beams(decoder, spec),
        constraint=None if spec.pattern is None else decoder.constraints.get(spec.pattern),
        deadline_s=time.monotonic() + spec.timeout_s,
    )


def _num_beams(decoder: Decoder[Any], spec: SequenceSpec) -> int:
    """Return the beams asked for, or the checkpoint's own number; one where tokens are drawn at random."""
    if spec.num_beams is not None:
        return spec.num_beams
    return decoder.rules.num_beams if spec.temperature == 0 else 1


def to_written(decoder: Decoder[Any], request: SequenceRequest, written: WrittenSequence) -> Written:
    """Return the message for a written sequence, without the tokens that start and end every answer."""
    sequence = written.sequence
    is_framing = decoder.rules.eos_token_ids | {decoder.rules.forced_bos_token_id, decoder.pad_token_id}
    kept = [i for i, token_id in enumerate(sequence.token_ids) if token_id not in is_framing]
    text, token_ends = decoder.decode_text([sequence.token_ids[i] for i in kept])
    return Written(
        text=text,
        token_ends=list(token_ends),
        logprobs=[sequence.logprobs[i] for i in kept],
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=len(request.prompt_ids),
        num_generated_tokens=len(sequence.token_ids),
        queue_s=written.queue_s,
        prefill_s=written.prefill_s,
        decode_s=written.decode_s,
    )


def to_failed(error: SequenceError) -> Failed:
    """Return the message for a failed sequence."""
    return Failed(code=error.code, message=str(error))
