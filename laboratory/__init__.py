"""Calibration of the embedded models, and the speed of the service.

Commands, each with `--help`:

    python -m laboratory.calibration     fit the calibrations of the embedded models' scores
    python -m laboratory.bench           measure our service and its peers under the same load
                                         (make bench)

    processes      start and stop of servers
    scenes         scenes that no training has seen, and datasets
    bench/         the benchmark against other servers; its results are in results/

Nothing in here runs in the service.
"""
