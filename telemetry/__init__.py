"""Every metric, once; logging; the /metrics endpoint."""
