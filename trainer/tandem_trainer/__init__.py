"""The work: programs, LM client, optimizers, traces, fine-tuning and evaluation. One entry point a stage: `main.py`."""
