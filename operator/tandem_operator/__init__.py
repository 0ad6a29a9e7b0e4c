"""The control plane: it decides, and platforms carry out."""
