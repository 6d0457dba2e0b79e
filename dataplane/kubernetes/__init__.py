"""The Kubernetes door: nodes, services and network policies as an API server tells them."""
