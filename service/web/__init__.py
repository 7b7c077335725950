"""The pages: documentation, OpenAPI, playground."""
