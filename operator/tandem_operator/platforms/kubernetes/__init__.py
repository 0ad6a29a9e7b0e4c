"""The engine's actions carried out on Kubernetes: a Deployment that serves, one Job an attempt."""
