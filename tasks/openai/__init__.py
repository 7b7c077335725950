"""The language of models behind an engine of OpenAI's protocol: prompts, JSON answers, parsing."""

from tasks.openai.parsing import parse_answer
from tasks.openai.prompts import answer_schema, read_prompt, task_prompts

__all__ = ["answer_schema", "parse_answer", "read_prompt", "task_prompts"]
