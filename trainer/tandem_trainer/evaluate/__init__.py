"""Scoring a program on examples: data sets, metrics, intervals, the ledger and the evaluator."""
