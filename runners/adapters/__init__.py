"""LoRA adapters in PEFT's format: read, checked against their base, loaded when found, computed."""
