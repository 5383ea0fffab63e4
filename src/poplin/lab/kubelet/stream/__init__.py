"""Streams between kubectl and containers: exec, attach, logs and port-forward.

A reading order. `channel` and `spdy` are what goes over the wire, both pure; `console` is a running
container's or command's standard streams, `session` carries them over a WebSocket; `log` reads what
containers have written; `forward` connects to their ports; `handler` answers the API server's requests.
"""
