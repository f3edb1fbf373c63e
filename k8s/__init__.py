"""Kubernetes: manifests from the cluster's own configuration, and what operates them."""
