"""Prompt optimization: demos, the candidates of bootstrap few-shot with random search, and their selection."""
