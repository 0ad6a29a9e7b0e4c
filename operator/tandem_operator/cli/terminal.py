"""Where results are printed."""

from __future__ import annotations

from rich.console import Console

#: Of what is no terminal.
WIDTH = 80


def console() -> Console:
    """Where results are printed: as wide as the terminal, and 80 columns elsewhere."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH)
