"""Flannel over etcd v3: a node of ours in an overlay of flannel nodes."""
