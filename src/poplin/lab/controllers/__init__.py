"""The lab's controllers and scheduler: what turns Deployments into Pods on Nodes."""
