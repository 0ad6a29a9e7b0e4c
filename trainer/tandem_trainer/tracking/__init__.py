"""What MLflow is told of a run. Nothing here ends an attempt or makes one wait for long: see `tracker`."""
