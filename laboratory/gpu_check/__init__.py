"""The check of a GPU: `python -m laboratory.gpu_check MODEL…` (`make gpu-check`) on its host.

report      verdicts, what to try where an aim is missed, and gpu-report.json with the host
parts       a model's encoder and decoder on the device, and requests for them
exactness   features, tokens and choices against the CPU and eager operations
speed       encoder, prefill, steps by number of rows, throughput
serving     the service with all models, adapters and a restart
resources   devices, memory under load, and what happens after a lost device

Every check also runs on a CPU, where only exactness has a meaning.
"""
