"""MIPRO (arXiv 2406.11695): instructions that a model proposes and bootstrapped demos, searched together."""
