"""The language of the project: tasks, parameters, prompts, and parsers of answers.

Pure Python and numpy. Knows both families' strings, but no tensors, tokenizer or HTTP.
"""
