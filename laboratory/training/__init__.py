"""Training of the embedded checkpoints from scratch on rendered scenes.

Command: `python -m laboratory.training MODEL`.

    scenes -> pictures (parts, questions, image) -> examples (prompt, answer, the subject of each
    token) -> losses -> model -> models/MODEL

data/     pictures of both worlds, vocabularies, true answers in each family's format, batches
models/   Florence-2 and PaliGemma in training: configuration, first weights, forward pass
runs/     recipes, losses, optimizer, the loop, validation, and the files of a run
masks/    the VQ-VAE of PaliGemma's segmentation tokens

The models of things, `florence-2-things` and `paligemma-things`, see 256 px and need the folder of
`python -m laboratory.things FOLDER`. A run is resumed by the command that started it:

    OMP_NUM_THREADS=1 python -m laboratory.training florence-2-things --material FOLDER --runs RUNS
"""
