"""The language of the project: tasks and their parameters, prompts out, generated text to typed
results.

Pure Python and numpy. It knows both families' strings; it knows no tensors, no tokenizer and no
HTTP.
"""
