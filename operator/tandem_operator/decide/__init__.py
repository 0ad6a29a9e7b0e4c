"""The pure engine: `decide(spec, status, observed) -> actions, status`. No I/O, no clock, no randomness."""
