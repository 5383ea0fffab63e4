"""The Container Network Interface: its protocol as values, the server that the agent runs, the shim's source."""
