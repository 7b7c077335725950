"""Inputs of an export: where a checkpoint comes from, what is known about its precisions, and the planned job."""
