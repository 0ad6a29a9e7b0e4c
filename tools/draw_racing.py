#!/usr/bin/env python3
"""Draws docs/racing.svg: one race of twelve simulated candidates, decided by `tandem_trainer.prompt.racing`.

python tools/draw_racing.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tandem_trainer.prompt.racing import Rules, looks_at, losers

FILE = Path(__file__).parents[1] / "docs" / "racing.svg"
#: The true accuracies of the candidates, and on how many examples they are scored.
ACCURACIES = (0.42, 0.50, 0.78, 0.61, 0.70, 0.55, 0.74, 0.47, 0.66, 0.58, 0.36, 0.72)
EXAMPLES = 100
RULES = Rules(error_rate=0.05, first_round=10, exhaustive=False)
WIDTH, ROW, LEFT, TOP = 800, 22, 120, 46


def main() -> None:
    """Simulate the race and draw it."""
    random = np.random.default_rng(7)
    # Examples differ in difficulty, the same for all candidates.
    difficulty = random.normal(0, 0.25, EXAMPLES)
    drawn = random.random((len(ACCURACIES), EXAMPLES))
    scores = (drawn < np.clip(np.array(ACCURACIES)[:, None] - difficulty, 0, 1)).astype(float)
    alive, ends = list(range(len(ACCURACIES))), dict.fromkeys(range(len(ACCURACIES)), EXAMPLES)
    looks = looks_at(EXAMPLES, RULES)
    for look in looks:
        gone = losers(scores[:, :look], alive, EXAMPLES, RULES)
        ends |= dict.fromkeys(gone, look)
        alive = [index for index in alive if index not in gone]
    means = {index: scores[index, : ends[index]].mean() for index in ends}
    winner = max(alive, key=lambda index: (means[index], -index))
    FILE.write_text(svg(looks, ends, means, winner), encoding="utf-8")
    print(f"{FILE.name}: {sum(ends.values())} runs instead of {len(ends) * EXAMPLES}")


def svg(looks: tuple[int, ...], ends: dict[int, int], means: dict[int, float], winner: int) -> str:
    """The picture: a bar for each candidate, as long as it was in the race."""
    scale = (WIDTH - LEFT - 190) / EXAMPLES
    height = TOP + ROW * len(ends) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-labelledby="t">',
        f'<title id="t">A race of {len(ends)} candidates: {sum(ends.values())} runs instead of '
        f"{len(ends) * EXAMPLES}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="16" fill="#333">examples scored; a dashed line is a look</text>',
    ]
    bottom = TOP + ROW * len(ends)
    for look in looks:
        x = LEFT + look * scale
        parts.append(f'<path d="M{x:.0f} {TOP - 6}V{bottom}" stroke="#bbb" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x:.0f}" y="{TOP - 12}" text-anchor="middle" fill="#666">{look}</text>')
    for index, end in ends.items():
        y = TOP + ROW * index
        colour = "#1b7f5c" if index == winner else "#4c78a8" if end == EXAMPLES else "#c9ccd3"
        fate = "the winner" if index == winner else "scored on all" if end == EXAMPLES else "dropped"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end" fill="#333">candidate {index + 1}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{end * scale:.0f}" height="{ROW - 7}" fill="{colour}"/>')
        text = f"{100 * means[index]:.0f}% of {end}, {fate}"
        parts.append(f'<text x="{LEFT + end * scale + 8:.0f}" y="{y + 13}" fill="#333">{text}</text>')
    saved = f"{sum(ends.values())} runs instead of {len(ends) * EXAMPLES}"
    parts.append(f'<text x="{LEFT}" y="{bottom + 22}" fill="#333">{saved}</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
