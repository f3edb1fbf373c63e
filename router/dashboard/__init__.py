"""The page for whoever runs the cluster, live and without anything else: docs/dashboard.md."""
