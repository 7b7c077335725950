"""PaliGemma's language: prompts, location and segmentation tokens, parsing of answers."""

from tasks.paligemma.grammar import answer_grammar
from tasks.paligemma.masks import MaskDecoder
from tasks.paligemma.parsing import parse_answer
from tasks.paligemma.prompts import read_prompt, task_prompts

__all__ = ["MaskDecoder", "answer_grammar", "parse_answer", "read_prompt", "task_prompts"]
