"""One server under load: what is sent to it, in which rounds, and when it answers.

workloads    which requests are sent, by how many clients, in how many rounds
client       sends and times them
servers      the servers and how each is started
measurement  one server under every workload of one model; the file with its results
"""
