"""The conversion between the gateway's messages and sequences: prompts to token ids, generated
tokens to text.
"""

import time
from collections.abc import Iterable

from torch import Tensor

from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import WrittenSequence
from runners.decoder.sequences import SequenceRequest, TokenListener
from runners.errors import SequenceError
from wire.runner_messages import SequenceSpec, Written

# If neither the request nor the checkpoint's generation_config sets it. Source: Florence-2's model
# card.
DEFAULT_MAX_NEW_TOKENS = 1024


def to_request(
    decoder: Decoder,
    image_features: Tensor,
    spec: SequenceSpec,
    on_tokens: TokenListener | None = None,
) -> SequenceRequest:
    """Return the request over `image_features` (N, C); raise `SequenceError` for a bad `spec`."""
    token = spec.own_token
    if token is not None and not decoder.text.tokenizer.has_control_token(token):
        raise SequenceError("unknown_token", f"{token[:80]} is not a token of this checkpoint")
    if spec.adapter is not None and spec.adapter not in decoder.adapters.keys:
        message = f"no adapter of the build {spec.adapter[:80]!r} is loaded; retry in a few seconds"
        raise SequenceError("unknown_adapter", message)
    prompt_ids = decoder.text.prompt_ids(spec.segments)
    limit = decoder.shape.max_new_tokens(len(image_features) + len(prompt_ids))
    if spec.max_new_tokens is not None and spec.max_new_tokens > limit:
        message = f"max_new_tokens is {spec.max_new_tokens}; at most {limit} are allowed here"
        raise SequenceError("sequence_too_long", message)
    max_new_tokens = spec.max_new_tokens or decoder.rules.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    default_beams = decoder.rules.num_beams if spec.temperature == 0 else 1
    return SequenceRequest(
        image_features,
        prompt_ids,
        max_new_tokens=min(max_new_tokens, limit),
        temperature=spec.temperature,
        seed=spec.seed,
        top_p=spec.top_p,
        num_beams=default_beams if spec.num_beams is None else spec.num_beams,
        constraint=None if spec.grammar is None else decoder.text.constraints.get(spec.grammar),
        deadline_s=time.monotonic() + spec.timeout_s,
        on_tokens=on_tokens,
        prompt_words=None if spec.grammar is None else decoder.text.prompt_words(prompt_ids),
        adapter=spec.adapter,
    )


class AnswerText:
    """The incremental text of one answer, without the tokens that start and end every answer."""

    def __init__(self, decoder: Decoder) -> None:
        self._complete = decoder.text.tokenizer.text_stream()
        rules = decoder.rules
        self.framing_ids = rules.eos_token_ids | {
            rules.bos_token_id,
            rules.forced_bos_token_id,
            decoder.text.pad_token_id,
        }
        self.text = ""
        self.token_ends: list[int] = []  # offset in `text` after each token that has one

    def push(self, token_ids: Iterable[int]) -> str:
        before = len(self.text)
        for token_id in token_ids:
            if token_id not in self.framing_ids:
                self.text += self._complete(token_id)
                self.token_ends.append(len(self.text))
        return self.text[before:]


def to_written(decoder: Decoder, request: SequenceRequest, written: WrittenSequence) -> Written:
    sequence = written.sequence
    answer = AnswerText(decoder)
    answer.push(sequence.token_ids)
    pairs = zip(sequence.token_ids, sequence.logprobs, strict=True)
    return Written(
        text=answer.text,
        token_ends=answer.token_ends,
        logprobs=[logprob for token_id, logprob in pairs if token_id not in answer.framing_ids],
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=len(request.prompt_ids),
        num_generated_tokens=len(sequence.token_ids),
        num_constrained_tokens=sequence.num_constrained,
        queue_s=written.queue_s,
        prefill_s=written.prefill_s,
        decode_s=written.decode_s,
    )
