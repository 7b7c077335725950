"""The language of the project: tasks, parameters, prompts, and parsers of answers.

Pure Python and numpy. It knows both families' strings; it knows no tensors, no tokenizer and no
HTTP.
"""
