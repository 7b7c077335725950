"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Shapes: B batch, N image tokens, S prompt (padded), T decoded, C hidden, V vocabulary. Attention over image and prompt
is bidirectional, positions start at 1. Prompts are padded on the right; every mask hides the padding, and positions
skip it, so that it never changes an answer. Knows no tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, Gemma2ForCausalLM, GemmaForCausalLM
from transformers.cache_utils import DynamicCache

from runners.artifacts import TOKENIZER_FILE, Precision, read_config
from runners.batch_inputs import stack_inputs
from runners.decoder_weights import load_language_model
from runners.prompt_tokenizer import PromptTokenizer, Segments
from runners.sequences import GenerationRules, SequenceRequest, SequenceTooLong

_LANGUAGE_MODELS: dict[str, type[GemmaForCausalLM] | type[Gemma2ForCausalLM]] = {
    "gemma": GemmaForCausalLM,  # PaliGemma
    "gemma2": Gemma2ForCausalLM,  # PaliGemma 2
}


@dataclass(slots=True)
class PaliGemmaState:
    """One batch between two steps."""

    key_positions: Tensor  # (B, N + S + T) position of each cached key, 0 at padding
    next_positions: Tensor  # (B,)
    kv_cache: DynamicCache


class PaliGemmaDecoder:
    """Everything of a PaliGemma checkpoint after its image features."""

    def __init__(
        self,
        model: GemmaForCausalLM | Gemma2ForCausalLM,
        tokenizer: PromptTokenizer,
        rules: GenerationRules,
        config: dict[str, Any],
    ) -> None:
        self.rules = rules
        self.pad_token_id: int = config["pad_token_id"]
        self._model = model
        self._tokenizer = tokenizer
        self._bos_token_id: int = config["bos_token_id"]
        self._max_positions: int = model.config.max_position_embeddings
        self._sliding_window: int | None = getattr(model.config, "sliding_window", None)

    @classmethod
    def load(cls, folder: Path, precision: Precision, device: str) -> Self:
        """Load the decoder of an artifact folder onto `device`."""
        config = read_config(folder)
        text_config = AutoConfig.for_model(**config["text_config"])
        model_class = _LANGUAGE_MODELS[text_config.model_type]
        model = load_language_model(model_class, text_config, folder, "model.", precision, device)
        return cls(model, PromptTokenizer.load(folder / TOKENIZER_FILE), GenerationRules.load(folder), config)

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        r"""Return `<bos> prompt \n`; source: transformers, models/paligemma/processing_paligemma.py."""
        return (self._bos_token_id, *self._tokenizer.encode([*segments, ("\n", False)]))

    def decode_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of generated ids and the offset in it after each of them."""
        return self._tokenizer.decode(token_ids)

    def max_new_tokens(self, num_read: int) -> int:
        """Return the positions left: Gemma has one range of them for image, prompt and answer."""
        if num_read >= self._max_positions:
            raise SequenceTooLong(f"image and prompt are {num_read} tokens, the model has {self._max_positions}")
        return self._max_positions - num_read

    def prefill(self, requests: Sequence[SequenceRequest]) -> tuple[PaliGemmaState, Tensor]:
        """Run Gemma over image features and prompts."""
        inputs_embeds, positions = self._prefix(requests)
        last = positions.amax(dim=1)  # (B,) also the number of tokens read, as positions start at 1
        state = PaliGemmaState(positions, last + 1, DynamicCache())
        query_positions = torch.arange(1, positions.shape[1] + 1, device=positions.device).expand_as(positions)
        hidden_states = self._run(state, inputs_embeds, query_positions, is_prefix=True)
        return state, self._logits(hidden_states[torch.arange(len(last)), last - 1])

    def decode_step(self, state: PaliGemmaState, token_ids: Tensor) -> Tensor:
        """Append `token_ids` (B,) to the state; return the logits (B, V) of each next token."""
        query_positions = state.next_positions[:, None]
        state.key_positions = torch.cat([state.key_positions, query_positions], dim=1)
        state.next_positions = state.next_positions + 1
        inputs_embeds = self._embed(token_ids[:, None])
        return self._logits(self._run(state, inputs_embeds, query_positions, is_prefix=False)[:, -1])

    def _prefix(self, requests: Sequence[SequenceRequest]) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, N + S, C), image first, and key positions (B, N + S), 0 at padding."""
        inputs = stack_inputs(requests, self.pad_token_id, self._model.device, self._model.dtype)
        inputs_embeds = torch.cat([inputs.image_features, self._embed(inputs.prompt_ids)], dim=1)
        positions = torch.arange(1, inputs_embeds.shape[1] + 1, device=inputs_embeds.device)
        return inputs_embeds, positions * (positions <= inputs.num_read[:, None])

    def _embed(self, token_ids: Tensor) -> Tensor:
        embeds: Tensor = self._model.get_input_embeddings()(token_ids.to(self._model.device))
        return embeds

    def _run(self, state: PaliGemmaState, inputs_embeds: Tensor, query_positions: Tensor, *, is_prefix: bool) -> Tensor:
        """Run Gemma's layers and return the last hidden states (B, queries, C)."""
        output = self._model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._attention_mask(state.key_positions, query_positions, is_prefix),
            position_ids=query_positions,
            cache=state.kv_cache,
            use_cache=True,
        )
        hidden_states: Tensor = output.last_hidden_state
        return hidden_states

    def _attention_mask(
        self, key_positions: Tensor, query_positions: Tensor, is_prefix: bool
    ) -> Tensor | dict[str, Tensor]:
        """Return what is added to attention scores (B, 1, queries, keys), by layer type where a window slides.

        Inside the prefix the window does not count: transformers joins the prefix block to the window's mask.
        """
        is_key = (key_positions > 0)[:, None, None, :].expand(-1, 1, query_positions.shape[1], -1)
        full = self._additive(is_key)
        if self._sliding_window is None:
            return full
        distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
        is_near = is_key if is_prefix else is_key & (distance < self._sliding_window)
        return {"full_attention": full, "sliding_attention": self._additive(is_near)}

    def _additive(self, is_visible: Tensor) -> Tensor:
        dtype = self._model.dtype
        zeros = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
        return zeros.masked_fill(~is_visible, torch.finfo(dtype).min)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (B, V) of `hidden_states` (B, C), with Gemma 2's soft cap where the model has one."""
        logits: Tensor = self._model.lm_head(hidden_states)
        softcap: float | None = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap
