"""The service's own HTTP interface, and what all HTTP interfaces share."""
