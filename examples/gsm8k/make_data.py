"""Writes data/: arithmetic word problems of one to three steps, with their reasoning and their answers.

    python examples/gsm8k/make_data.py

Every problem is made from a template by the seed; the answer is computed, never typed. `steps` holds the arithmetic by
itself, so that a test can do it again; `reasoning` says it in words, so that an example is a whole demo. The files are
in the repository; a run does not need this script.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SEED = 3
FOLDER = Path(__file__).parent / "data"
SPLITS = {"train": 100, "validation": 60, "test": 100}

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hana", "Ivan", "Julia", "Kofi", "Lena", "Marco"]
NAMES += ["Nora", "Omar", "Priya", "Quinn", "Rosa", "Sam", "Tara", "Uma", "Victor", "Wendy", "Yusuf", "Zoe"]
THINGS = ["apples", "pencils", "stamps", "marbles", "postcards", "shells", "cookies", "stickers", "buttons", "coins"]
GOODS = ["notebook", "ball", "cup", "candle", "brush", "lamp", "puzzle", "scarf", "bottle", "basket"]
BOXES = ["box", "bag", "crate", "basket", "tray"]
PLANTS = ["rose bushes", "tomato plants", "young trees", "lavender plants", "bean plants"]


@dataclass
class Problem:
    """A word problem as it is made: each step's result may be an operand of the next."""

    rng: random.Random
    question: str = ""
    steps: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    answer: int = 0

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def names(self, count: int) -> list[str]:
        return self.rng.sample(NAMES, count)

    def step(self, left: int, operator: str, right: int, sentence: str) -> int:
        """One operation: its result, which `{}` in `sentence` stands for."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[operator]
        if result < 0 or (operator == "/" and left % right):
            raise ValueError(f"{left} {operator} {right} is no whole number from 0 on")
        equation = f"{left} {operator} {right} = {result}"
        self.steps.append(equation)
        self.sentences.append(sentence.format(equation))
        self.answer = result
        return result


def buying(p: Problem) -> None:
    (name,), good = p.names(1), p.rng.choice(GOODS)
    count, price = p.number(3, 12), p.number(2, 15)
    p.question = f"One {good} costs {price} dollars. {name} buys {count} of them. How many dollars does {name} pay?"
    p.step(count, "*", price, f"{name} pays {{}} dollars.")


def change(p: Problem) -> None:
    (name,), good = p.names(1), p.rng.choice(GOODS)
    count, price = p.number(2, 6), p.number(2, 9)
    paid = p.rng.choice([60, 80, 100])
    p.question = (
        f"{name} buys {count} things in a shop, each a {good} for {price} dollars, and pays with {paid} dollars. "
        f"How many dollars does {name} get back?"
    )
    total = p.step(count, "*", price, "Together they cost {} dollars.")
    p.step(paid, "-", total, f"{name} gets back {{}} dollars.")


def giving(p: Problem) -> None:
    (giver, taker), thing = p.names(2), p.rng.choice(THINGS)
    had, given, found = p.number(20, 60), p.number(3, 18), p.number(4, 25)
    p.question = (
        f"{giver} has {had} {thing} and gives {given} of them to {taker}. Later {giver} finds {found} more {thing}. "
        f"How many {thing} does {giver} have now?"
    )
    left = p.step(had, "-", given, f"After the gift {giver} has {{}} {thing}.")
    p.step(left, "+", found, f"With those that were found there are {{}} {thing}.")


def boxes(p: Problem) -> None:
    (name,), thing, box = p.names(1), p.rng.choice(THINGS), p.rng.choice(BOXES)
    count, each, loose = p.number(3, 9), p.number(6, 20), p.number(2, 15)
    p.question = (
        f"Each {box} holds {each} {thing}. {name} fills {count} of them and has {loose} {thing} left. "
        f"How many {thing} does {name} have in all?"
    )
    packed = p.step(count, "*", each, f"Packed are {{}} {thing}.")
    p.step(packed, "+", loose, f"In all there are {{}} {thing}.")


def sharing(p: Problem) -> None:
    (name,), thing = p.names(1), p.rng.choice(THINGS)
    friends, each, kept = p.number(3, 8), p.number(3, 12), p.number(2, 14)
    p.question = (
        f"{name} has {friends * each + kept} {thing}, keeps {kept} and shares the others equally among {friends} "
        f"friends. How many {thing} does each friend get?"
    )
    rest = p.step(friends * each + kept, "-", kept, f"To be shared are {{}} {thing}.")
    p.step(rest, "/", friends, f"Each friend gets {{}} {thing}.")


def reading(p: Problem) -> None:
    (name,) = p.names(1)
    daily, days, left = p.number(8, 35), p.number(3, 9), p.number(15, 120)
    p.question = (
        f"{name} reads {daily} pages of a book every day. After {days} days there are still {left} pages to read. "
        "How many pages does the book have?"
    )
    read = p.step(daily, "*", days, f"{name} has read {{}} pages.")
    p.step(read, "+", left, "The book has {} pages.")


def earning(p: Problem) -> None:
    (name,) = p.names(1)
    wage, first, second = p.number(9, 25), p.number(3, 8), p.number(2, 7)
    p.question = (
        f"{name} earns {wage} dollars an hour and works {first} hours on Monday and {second} hours on Tuesday. "
        f"How many dollars does {name} earn on the two days?"
    )
    hours = p.step(first, "+", second, f"{name} works {{}} hours.")
    p.step(hours, "*", wage, f"{name} earns {{}} dollars.")


def saving(p: Problem) -> None:
    (name,), good = p.names(1), p.rng.choice(GOODS)
    weekly, weeks, has = p.number(4, 12), p.number(3, 12), p.number(5, 40)
    p.question = (
        f"A {good} costs {has + weekly * weeks} dollars. {name} has {has} dollars already and saves {weekly} dollars "
        f"a week. After how many weeks can {name} buy it?"
    )
    missing = p.step(has + weekly * weeks, "-", has, f"{name} still needs {{}} dollars.")
    p.step(missing, "/", weekly, "That takes {} weeks.")


def driving(p: Problem) -> None:
    (name,) = p.names(1)
    speed, hours, rest = p.number(40, 95), p.number(2, 6), p.number(10, 90)
    p.question = (
        f"{name} drives for {hours} hours at {speed} kilometres an hour. Then there are {rest} kilometres left to go. "
        "How many kilometres long is the whole way?"
    )
    driven = p.step(hours, "*", speed, f"{name} has driven {{}} kilometres.")
    p.step(driven, "+", rest, "The whole way is {} kilometres.")


def garden(p: Problem) -> None:
    (name,), plants = p.names(1), p.rng.choice(PLANTS)
    rows, each, dead = p.number(3, 9), p.number(5, 14), p.number(2, 12)
    p.question = (
        f"In a garden {name} plants {rows} rows with {each} {plants} each. A storm destroys {dead} of them. "
        f"How many {plants} are left?"
    )
    planted = p.step(rows, "*", each, f"There were {{}} {plants}.")
    p.step(planted, "-", dead, "After the storm {} are left.")


def twice(p: Problem) -> None:
    (one, other), thing = p.names(2), p.rng.choice(THINGS)
    has = p.number(6, 40)
    p.question = f"{one} has {has} {thing} and {other} has twice as many. How many {thing} do the two have together?"
    double = p.step(has, "*", 2, f"{other} has {{}} {thing}.")
    p.step(has, "+", double, f"Together they have {{}} {thing}.")


def bus(p: Problem) -> None:
    start, off, on, later = p.number(20, 50), p.number(3, 15), p.number(2, 14), p.number(2, 9)
    p.question = (
        f"A bus leaves with {start} people. At the first stop {off} get off and {on} get on, and at the second stop "
        f"{later} more get on. How many people are on the bus then?"
    )
    left = p.step(start, "-", off, "After those who got off there are {} people.")
    more = p.step(left, "+", on, "With those who got on there are {} people.")
    p.step(more, "+", later, "After the second stop there are {} people.")


def bakery(p: Problem) -> None:
    (name,) = p.names(1)
    trays, each, price, sold = p.number(3, 7), p.number(6, 12), p.number(2, 4), p.number(4, 15)
    p.question = (
        f"In a bakery {name} bakes {trays} trays of {each} rolls and keeps {sold} rolls for friends. The others are "
        f"sold for {price} dollars each. How many dollars does {name} take in?"
    )
    baked = p.step(trays, "*", each, f"{name} bakes {{}} rolls.")
    rest = p.step(baked, "-", sold, "To be sold are {} rolls.")
    p.step(rest, "*", price, f"{name} takes in {{}} dollars.")


def trip(p: Problem) -> None:
    people, ticket, meal = p.number(4, 12), p.number(5, 18), p.number(4, 9)
    has = people * (ticket + meal) + p.number(5, 60)
    p.question = (
        f"A group of {people} people goes on a trip. Each pays {ticket} dollars for the train and {meal} dollars for "
        f"lunch out of a common purse of {has} dollars. How many dollars are left in the purse?"
    )
    each = p.step(ticket, "+", meal, "Each costs {} dollars.")
    total = p.step(people, "*", each, "Together they cost {} dollars.")
    p.step(has, "-", total, "Left are {} dollars.")


def half(p: Problem) -> None:
    (name,), thing = p.names(1), p.rng.choice(THINGS)
    has, lost = 2 * p.number(8, 40), p.number(1, 7)
    p.question = (
        f"{name} has {has} {thing} and sells half of them. Then {lost} {thing} get lost. "
        f"How many {thing} does {name} have left?"
    )
    sold = p.step(has, "/", 2, f"After the sale {name} has {{}} {thing}.")
    p.step(sold, "-", lost, f"Left are {{}} {thing}.")


TEMPLATES: list[Callable[[Problem], None]] = [
    *(buying, change, giving, boxes, sharing, reading, earning, saving, driving, garden, twice, bus, bakery, trip, half)
]


def make_problems(rng: random.Random, count: int) -> list[Problem]:
    """`count` different problems, the templates in turn."""
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = Problem(rng)
        TEMPLATES[len(problems) % len(TEMPLATES)](problem)
        problems.setdefault(problem.question, problem)
    return list(problems.values())


def main() -> None:
    rng = random.Random(SEED)
    problems = make_problems(rng, sum(SPLITS.values()))
    rng.shuffle(problems)
    FOLDER.mkdir(exist_ok=True)
    for split, size in SPLITS.items():
        part, problems = problems[:size], problems[size:]
        lines = [
            json.dumps(
                {
                    "id": f"{split}-{number:03d}",
                    "question": problem.question,
                    "reasoning": " ".join(problem.sentences),
                    "answer": str(problem.answer),
                    "steps": problem.steps,
                }
            )
            for number, problem in enumerate(part, start=1)
        ]
        (FOLDER / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
