"""The benchmark: our service and other servers under the same load on the same machine.

material    checkpoints, artifacts and questions of a run
load        the workloads, and the client that sends them
servers     our service and the peers, and how each is started
peers       the other servers
"""
