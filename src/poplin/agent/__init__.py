"""The node agent: watches -> cluster state -> compile -> plan -> apply, and the CNI plugin's server."""
