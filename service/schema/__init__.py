"""The JSON of the REST interface, and its rendering from answers."""
