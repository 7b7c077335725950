"""X-AnyLabeling's remote server protocol."""
