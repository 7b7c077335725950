"""How the embedded models are trained, and how accurate and how fast the service is.

Commands, each with `--help`:

    python -m laboratory.training MODEL  train an embedded checkpoint
    python -m laboratory.evaluation      measure the accuracy of a running service on rendered
                                         scenes
    python -m laboratory.bench           measure our service and its peers under the same load
                                         (make bench)
    python -m laboratory.gpu_check       check that models run on this host's GPU (make gpu-check)

    training/      the embedded checkpoints from scratch
    questions      questions of every task about a scene, with their true answers and prompts
    scoring        answers against the truth, and tables of them
    evaluation/    accuracy of a running service on scenes, by precision; calibrations
    tuning         scenes for the examples of docs/fine-tuning.md
    bench/         the benchmark against other servers; its results are in results/
    gpu_check/     checks of a GPU

Nothing in here runs in the service.
"""
