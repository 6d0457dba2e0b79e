"""One policy for all nodes, kept in etcd."""
