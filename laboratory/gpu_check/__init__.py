"""The check of a GPU: `python -m laboratory.gpu_check MODEL…` (`make gpu-check`) on its host.

processes   each check in a process of its own, with a limit
report      verdicts, what to try where an aim is missed, and the line for an issue
parts       a model's encoder and decoder on the device, and requests for them
exactness   features and tokens against the CPU
speed       encoder, prefill, steps by number of rows, throughput
serving     the service with all models, adapters and a restart
resources   devices, memory under load, a full card and a lost one
"""
