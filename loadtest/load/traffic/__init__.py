"""The requests to send, and their rate over time.

traffic_mix  traffic_mix.yaml: interfaces, images, tasks, the SLO of each task
questions    one request after the other, from the tasks that the service offers
scenes       images of several sizes, new or repeated
plans        load over time, in steps
saturation   the search for the saturation point
"""
