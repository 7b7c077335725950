"""PaliGemma's language: its prompts, its location and segmentation tokens, and how its answers are
read.
"""

from tasks.paligemma.grammar import answer_grammar
from tasks.paligemma.masks import MaskDecoder
from tasks.paligemma.parsing import parse_answer
from tasks.paligemma.prompts import read_prompt, task_prompts

__all__ = ["MaskDecoder", "answer_grammar", "parse_answer", "read_prompt", "task_prompts"]
