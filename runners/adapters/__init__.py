"""LoRA adapters in PEFT's format: read, checked against their base, and loaded from a watched
folder.
"""
