"""Offline tools: checkpoints become artifacts for the runners.

Commands, each with `--help`:

    python -m export MODEL…          make the artifacts of catalog models and store them in
                                     BentoML's model store
    python -m export doctor          check this host and the exported models
    python -m export golden MODEL    compare an exported model's answers with published ones
    python -m export.bento FOLDER    build the Bento that a container image is made of
    python -m export.tune DATA       tune a LoRA adapter on a labelled dataset

Folders, in the order of their imports:

    checkpoints/   inputs of an export: sources, forms, tensors, planned jobs
    artifacts/     outputs: ONNX vision encoders, model store
    checks/        parity with transformers, published answers, and the loss at each precision
    tuning/        LoRA adapters on a user's labels

Nothing in here runs in the service.
"""
