"""The user's program: how it is loaded, rendered and run."""
