"""What the commands on a running node do: clients of its API only, each gives its exit code."""
