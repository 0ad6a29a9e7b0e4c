"""Talking to the model server: the HTTP client and the LM that programs see."""
