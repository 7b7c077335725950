"""Training of the embedded checkpoints from scratch on rendered scenes.

Command: `python -m laboratory.training MODEL`.

    scenes -> pictures (parts, questions, image) -> examples (prompt, answer, the subject of each
    token) -> losses -> model -> models/MODEL

data/     pictures, vocabularies, true answers in each family's format, batches
models/   Florence-2 and PaliGemma in training: configuration, first weights, forward pass
runs/     recipes, losses, optimizer, the loop, validation, and the files of a run
masks/    the VQ-VAE of PaliGemma's segmentation tokens

A run is resumed by the command that started it.
"""
