"""Florence-2's decoder: BART's text encoder over image features and prompt, BART's decoder for the answer.

Shapes: B batch, N image tokens, S prompt (padded), C hidden, V vocabulary. Prompts are padded on the right, and the
text encoder's mask hides the padding, so that it never changes an answer. Knows no tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BartConfig, BartModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from runners.artifacts import TOKENIZER_FILE, Precision, read_config
from runners.batch_inputs import stack_inputs
from runners.decoder_weights import load_language_model
from runners.prompt_tokenizer import PromptTokenizer, Segments
from runners.sequences import GenerationRules, SequenceRequest, SequenceTooLong


@dataclass(slots=True)
class Florence2State:
    """One batch between two steps."""

    encoder_hidden_states: Tensor  # (B, N + S, C)
    encoder_attention_mask: Tensor  # (B, N + S), 1 where there is a token
    kv_cache: EncoderDecoderCache


class Florence2Decoder:
    """Everything of a Florence-2 checkpoint after its image features."""

    def __init__(
        self, model: BartModel, tokenizer: PromptTokenizer, rules: GenerationRules, config: dict[str, Any]
    ) -> None:
        self.rules = rules
        self.pad_token_id: int = config["text_config"]["pad_token_id"]
        self._model = model
        self._tokenizer = tokenizer
        self._bos_token_id: int = config["text_config"]["bos_token_id"]
        self._eos_token_id: int = config["text_config"]["eos_token_id"]
        start_token_id = rules.decoder_start_token_id
        if start_token_id is None:
            start_token_id = config["text_config"]["decoder_start_token_id"]
        self._start_token_id: int = start_token_id
        self._max_positions: int = config["text_config"]["max_position_embeddings"]

    @classmethod
    def load(cls, folder: Path, precision: Precision, device: str) -> Self:
        """Load the decoder of an artifact folder onto `device`."""
        config = read_config(folder)
        model = load_language_model(BartModel, BartConfig(**config["text_config"]), folder, "", precision, device)
        return cls(model, PromptTokenizer.load(folder / TOKENIZER_FILE), GenerationRules.load(folder), config)

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return `<s> prompt </s>`; source: transformers, models/florence2/processing_florence2.py."""
        return (self._bos_token_id, *self._tokenizer.encode(segments), self._eos_token_id)

    def decode_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of generated ids and the offset in it after each of them."""
        return self._tokenizer.decode(token_ids)

    def max_new_tokens(self, num_read: int) -> int:
        """Return the decoder's positions: BART has one table of them for its encoder and one for its decoder."""
        if num_read > self._max_positions:
            raise SequenceTooLong(f"image and prompt are {num_read} tokens, the model reads {self._max_positions}")
        return self._max_positions

    def prefill(self, requests: Sequence[SequenceRequest]) -> tuple[Florence2State, Tensor]:
        """Run the text encoder over image features and prompts, and the decoder over its start token."""
        inputs_embeds, attention_mask = self._encoder_inputs(requests)
        encoded = self._model.encoder(inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        state = Florence2State(encoded.last_hidden_state, attention_mask, cache)
        start = torch.full((len(requests),), self._start_token_id, dtype=torch.long)
        return state, self.decode_step(state, start)

    def decode_step(self, state: Florence2State, token_ids: Tensor) -> Tensor:
        """Append `token_ids` (B,) to the state; return the logits (B, V) of each next token."""
        output = self._model.decoder(
            input_ids=token_ids.to(self._model.device)[:, None],
            encoder_hidden_states=state.encoder_hidden_states,
            encoder_attention_mask=state.encoder_attention_mask,
            cache=state.kv_cache,
            use_cache=True,
        )
        logits: Tensor = output.last_hidden_state[:, -1] @ self._model.shared.weight.T
        return logits

    def _encoder_inputs(self, requests: Sequence[SequenceRequest]) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, N + S, C), image first, and their mask (B, N + S)."""
        inputs = stack_inputs(requests, self.pad_token_id, self._model.device, self._model.dtype)
        inputs_embeds = torch.cat([inputs.image_features, self._model.shared(inputs.prompt_ids)], dim=1)
        positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        return inputs_embeds, (positions < inputs.num_read[:, None]).long()
