"""Poplin: a Kubernetes pod network."""
