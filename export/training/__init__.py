"""Trains the embedded checkpoints from scratch on rendered scenes: `python -m export.training MODEL`.

    scenes -> examples (prompt, answer, what each token is about) -> losses -> model -> models/MODEL

    recipes            every number of a run
    tokenizers         a vocabulary of each family, made from the scenes' own wording
    prompts            the prompts of a question, by the service's own code
    mentions           an answer as text, and the object, character or coordinate that each piece of it is about
    florence2          Florence-2: configuration, one pass; florence2_answers: how it writes the truth
    paligemma          PaliGemma: the same
    mask_*             the VQ-VAE of PaliGemma's segmentation tokens
    examples, batches  questions about a scene as tensors
    images             scenes as pixels, augmented
    cell_targets       what stands at each cell of the image's grid
    cell_heads         predicts it from features and states; thrown away after training
    trainee            a family's model as the loop sees it
    losses, optimizer, initialization, loop, validation
    run_state, learning_curve, checkpoint    what is kept of a run

Nothing else imports this package.
"""
