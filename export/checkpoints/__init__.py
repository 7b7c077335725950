"""Inputs of an export: checkpoint sources, precision records, planned jobs, and random
checkpoints.
"""
