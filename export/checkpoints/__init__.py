"""Inputs of an export: checkpoint sources and their forms, tensors, planned jobs."""
