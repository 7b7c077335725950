"""How accurate and how fast the service is, measured on the embedded models.

Commands, each with `--help`:

    python -m laboratory.evaluation      measure the accuracy of a running service on rendered
                                         scenes
    python -m laboratory.calibration     fit the calibrations of the embedded models' scores
    python -m laboratory.label_errors    measure how `diptych review` finds errors put into labels
    python -m laboratory.familiarity     kinds of images that calibrations notice as unlike theirs
    python -m laboratory.tiles           measure boxes in tiles of a running service
    python -m laboratory.tuning          write the scenes of the example of docs/fine-tuning.md
    python -m laboratory.bench           measure our service and its peers under the same load
                                         (make bench)
    python -m laboratory.gpu_check       check that models run on this host's GPU (make gpu-check)

    questions      questions of every task about a scene, with their true answers
    scenes         scenes that no training has seen, and datasets
    bench/         the benchmark against other servers; its results are in results/
    gpu_check/     checks of a GPU

Nothing in here runs in the service.
"""
