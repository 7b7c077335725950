"""Tokens and their rules: tokenizer, generation rules, constraints, the choice from logits."""
