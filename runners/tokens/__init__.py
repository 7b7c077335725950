"""One token and the rules for it: tokenizer, generation rules, constraints, the choice of a token
from logits.
"""
