"""The CNI door: a plugin that container runtimes call, and what it asks a running node for."""
