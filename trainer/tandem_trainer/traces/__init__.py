"""Traces: which runs of the program are kept for a `w` step, and their files."""
