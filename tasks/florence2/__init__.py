"""Florence-2's language: its prompts, its location tokens, and the parser of its answers."""

from tasks.florence2.grammar import answer_grammar
from tasks.florence2.parsing import parse_answer, read_banned_phrases
from tasks.florence2.prompts import read_prompt, task_prompts

__all__ = ["answer_grammar", "parse_answer", "read_banned_phrases", "read_prompt", "task_prompts"]
