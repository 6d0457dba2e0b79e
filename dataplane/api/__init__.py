"""The control API of a running node: HTTP and JSON on a unix socket, and its client."""
