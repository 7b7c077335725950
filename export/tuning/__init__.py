"""LoRA adapters tuned on labels: a dataset -> prompts and answers -> token ids -> an adapter in
PEFT's format.
"""
