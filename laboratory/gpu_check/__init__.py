"""The check of a GPU: `python -m laboratory.gpu_check MODEL…` (`make gpu-check`) on its host.

verdicts    a measurement with its aim, as a line of JSON and as a row of a table
parts       a model's encoder and decoder on the device, and requests for them
exactness   providers; features and tokens against float32 on the CPU
choices     captured choices of tokens against eager ones
speed       encoder, prefill, steps by number of rows, a sampled sequence among greedy ones,
            throughput
idle        share of a step in which the device waits for the host
report      gpu-report.json, with the host, and what its missed aims may mean
serving     the service with all models, adapters and a restart
resources   transfers of a step, memory, and what happens without it or after a lost device

Every check also runs on a CPU, where only exactness has a meaning.
"""
