"""Offline tools: checkpoints become artifacts for the runners, and the embedded models are trained
and evaluated.

Commands, each with `--help`:

    python -m export MODEL…          make the artifacts of catalog models and store them in
                                     BentoML's model store
    python -m export doctor          check this host and the exported models
    python -m export.bento FOLDER    build the Bento that a container image is made of
    python -m export.evaluation      measure the accuracy of a running service on rendered scenes
    python -m export.memory          print the memory tables of docs/operations.md
    python -m export.training MODEL  train an embedded checkpoint
    python -m export.tune DATA       tune a LoRA adapter on a labelled dataset
    python -m export.bench FOLDER    prepare models and questions of the benchmark
    python -m export.gpu_check       check that models run on this host's GPU

Folders, in the order of their imports:

    checkpoints/   inputs of an export: sources, precision records, jobs, random checkpoints
    artifacts/     outputs: ONNX vision encoder, decoder weights, model store
    scenes/        rendered scenes, questions about them, true answers and scoring
    checks/        parity with transformers, and the loss at each precision
    evaluation/    accuracy of a running service on scenes, by precision and with constraints;
                   calibrations, consensus
    training/      the embedded checkpoints from scratch
    tuning/        LoRA adapters on a user's labels
    bench/         models, questions and step times of the benchmark
    gpu_check/     checks of a GPU

Nothing in here runs in the service.
"""
