"""The bench: our service and two servers that a user would write instead, under the same load, on the same machine.

python -m loadtest            everything (make bench)
python -m loadtest --quick    the embedded checkpoints only, one short round

material    what there is to ask: models, images, questions (written by export/bench)
workloads   which requests are sent, in which order, by how many clients
client      sends them, and times them
servers     starts and stops a server; peers/ holds the two that ours is compared with
bench       one server after the other under every workload; results lie in files, one a server
measures    throughput and percentiles of what came back
targets     ours against the best peer
machine     what this machine can do: matrix products, memory
operations  what a model has to do: operations of an image, bytes of a token
limits      the share of the first that the service gets out of the second
report, plot   tables and picture
path_cost      what the path of a request adds to the stages of the model; a command of its own
load           Locust against a running service, to its saturation point; make loadtest
soak           long mixed load on our service, and whether what its processes take stays flat; a command of its own

It speaks to servers over the network and starts commands; it imports nothing of them.
"""
