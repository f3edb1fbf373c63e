"""Measures a running cluster from outside, over HTTP and /metrics, as a user would. Imports none of the cluster's code."""
