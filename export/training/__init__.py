"""Trains the embedded checkpoints from scratch on rendered scenes: `python -m export.training MODEL`.

    scenes -> examples (prompt, answer, what each token is about) -> losses -> model -> models/MODEL

    recipes            every number of a run
    tokenizers         a vocabulary of each family, made from the scenes' own wording
    florence2          Florence-2: configuration, how an answer is written, one training pass
    paligemma          PaliGemma: the same
    mask_*             the VQ-VAE of PaliGemma's segmentation tokens
    mentions           an answer as text, and the object, character or coordinate that each piece of it is about
    examples, batches  questions about a scene as tensors
    images             scenes as pixels, augmented
    cell_targets       what stands at each cell of the image's grid
    cell_heads         predicts it from the image features; thrown away after training
    losses, optimizer, loop, learning_curve, validation

Nothing else imports this package.
"""
