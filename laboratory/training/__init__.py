"""Training of the embedded checkpoints from scratch on rendered scenes.

    scenes -> pictures -> examples (prompt, answer, the cells that each token mentions) -> losses
    -> model -> models/MODEL

answers    pictures, and true answers in each family's format
examples   the batch of a step: images with the contents of their cells, prompts, answers
models     Florence-2 and PaliGemma in training: first weights, forward pass
losses     of answers, attention and auxiliary heads
loop       recipes, optimizers and the loop
"""
