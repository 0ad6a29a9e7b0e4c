"""The adapter sidecar of a serving pod: keeps vLLM serving the adapters that the operator wants, and no others."""
