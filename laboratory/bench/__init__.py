"""The benchmark: our service and the servers in peers/ under the same load on the same machine.

material    models, artifacts and questions of a run
rounds      one server under load: workloads, client, measurement
bench       the order and time of all measurements
measures    throughput, percentiles, and the stages of our service
results     all results of a run, and ours against the best peer
report      tables and picture
history     the ratios of all runs, and what got worse
short       the run at the end of the checks: one peer, side by side
"""
