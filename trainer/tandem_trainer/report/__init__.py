"""The result bundle and its report."""
