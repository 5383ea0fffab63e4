"""Cluster DNS: `zone` knows the names of a cluster, `answer` speaks DNS, `server` listens, `feed` follows the API.

Run in a pod by `python -m poplin.lab.dns`. What it serves is Kubernetes' DNS-based service discovery, version 1.1:
https://github.com/kubernetes/dns/blob/master/docs/specification.md
"""
