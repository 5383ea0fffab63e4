"""Frozen values: kernel objects, cluster objects, attachments, errors. Imports nothing else of ours."""
