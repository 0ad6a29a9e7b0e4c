"""Manifests that serve what a run has found, outside of Tandem."""
