"""The places where a run can happen."""
