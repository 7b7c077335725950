"""Metrics, traces and the watchdog of every process."""
