"""The processes of one start: supervisor, workers, roles, run folder, health check."""
