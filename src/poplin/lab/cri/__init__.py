"""Containers by containerd: its processes, its configuration, and the API that a kubelet asks it by (CRI)."""
