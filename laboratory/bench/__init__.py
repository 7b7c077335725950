"""The benchmark: our service and other servers under the same load on the same machine.

material        the model with random weights, and the questions
load            the workloads, the servers under them, and the client
peers           the other servers
random_weights  checkpoints with random weights in published configurations
"""
