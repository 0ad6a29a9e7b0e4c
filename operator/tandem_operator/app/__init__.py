"""The operator process: Kopf as the event source around `reconcile`, a Lease for leadership, health and metrics."""
