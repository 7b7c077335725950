"""How the embedded models are trained, and how accurate and how fast the service is.

Commands, each with `--help`:

    python -m laboratory.training MODEL  train an embedded checkpoint
    python -m laboratory.evaluation      measure the accuracy of a running service on rendered
                                         scenes
    python -m laboratory.calibration     fit the calibrations of the embedded models' scores
    python -m laboratory.tuning          write the scenes of the example of docs/fine-tuning.md
    python -m laboratory.bench           measure our service and its peers under the same load
                                         (make bench)
    python -m laboratory.fairness        measure what one client's heavy work costs another
    python -m laboratory.gpu_check       check that models run on this host's GPU (make gpu-check)

    training/      the embedded checkpoints from scratch
    questions      questions of every task about a scene, with their true answers and prompts
    scenes         scenes that no training has seen, and datasets
    bench/         the benchmark against other servers; its results are in results/
    gpu_check/     checks of a GPU

Nothing in here runs in the service.
"""
