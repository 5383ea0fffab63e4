"""A small kubelet: one process that serves all nodes of a lab."""
