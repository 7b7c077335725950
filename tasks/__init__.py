"""The language of the project: tasks, parameters, prompts, and parsers of answers.

Pure Python and numpy; pydantic validates the catalog and the files of scores. Knows both families'
strings, but no tensors, tokenizer or HTTP.
"""
