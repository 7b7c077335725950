"""Sequences of many requests in one batch: scheduler, choice of tokens, rules, constraints. It knows no family."""
