"""The folders of the project's code, which every check of the whole code reads.

One list: a folder that is added here is checked by all of them.
"""

PACKAGES = (
    "service",
    "runners",
    "wire",
    "imaging",
    "tasks",
    "export",
    "laboratory",
    "offline",
    "loadtest",
    "client/diptych_client",
)
