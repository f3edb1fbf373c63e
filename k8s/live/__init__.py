"""A cluster that is there: applying, watching, draining and deleting it through the API server."""
