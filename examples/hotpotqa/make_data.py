"""Writes data/: a small encyclopedia of a made-up country, and questions that take two of its paragraphs to answer.

    python examples/hotpotqa/make_data.py

Everything is invented and follows from the seed: first the facts (who was born where, which river flows where), then
sentences that state each fact once, then questions that follow one link from paragraph to paragraph: the first names
the second, and only the second holds the answer. The files are in the repository; a run does not need this script.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEED = 7
FOLDER = Path(__file__).parent / "data"
SPLITS = {"train": 100, "validation": 60, "test": 100}
#: Names by what they are names of, all made up.
NAMES: dict[str, list[str]] = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))

#: Industries and what their companies make.
MAKES = {
    "Instruments": "telescopes and barometers",
    "Shipping": "barges and ferries",
    "Glass": "window panes and lenses",
    "Paper": "paper and ink",
    "Motors": "engines for boats",
    "Textiles": "sails and blankets",
    "Ceramics": "tiles and porcelain",
    "Foods": "tinned fish and biscuits",
}


@dataclass
class Paragraph:
    """An entry of the encyclopedia, and where its facts stand."""

    title: str
    kind: str
    sentences: list[str] = field(default_factory=list)
    facts: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By relation: the sentence that states it, and what it states: an answer, or another paragraph's title."""

    def say(self, *phrasings: str, rng: random.Random, **facts: str) -> None:
        """Add one of the phrasings, which state the same facts: `{name}` is the fact's value, `{it}` the title."""
        for relation, value in facts.items():
            self.facts[relation] = (len(self.sentences), value)
        sentence = rng.choice(phrasings).format(it=self.title, **facts)
        self.sentences.append(sentence[0].upper() + sentence[1:])


#: Questions by the first paragraph's kind: its link to the second, the fact wanted there, and how one asks.
QUESTIONS = {
    "book": [
        ("author", "birthplace", "In which town was the author of {it} born?"),
        ("author", "university", "Where did the writer of the novel {it} study?"),
        ("author", "born", "In which year was the author of {it} born?"),
    ],
    "company": [
        ("founder", "birthplace", "What is the birthplace of the founder of {it}?"),
        ("founder", "university", "At which university did the person who founded {it} study?"),
        ("seat", "river", "Which river flows through the town where {it} has its head office?"),
        ("seat", "founded", "In which year was the town founded that is home to {it}?"),
        ("seat", "product", "What is the town known for in which {it} has its head office?"),
    ],
    "bridge": [
        ("river", "mouth", "Into which water does the river that {it} crosses flow?"),
        ("river", "source", "Where does the river crossed by {it} rise?"),
        ("designer", "birthplace", "In which town was the designer of {it} born?"),
        ("designer", "university", "Where was the designer of {it} educated?"),
    ],
    "museum": [
        ("town", "product", "What is the town that houses the {it} known for?"),
        ("town", "province", "In which province is the {it}?"),
        ("town", "river", "Which river flows through the town of the {it}?"),
    ],
    "university": [
        ("town", "river", "On which river lies the town of {it}?"),
        ("town", "product", "For what is the town known in which {it} stands?"),
        ("town", "province", "In which province does {it} lie?"),
    ],
    "person": [
        ("birthplace", "product", "What is the birthplace of {it} known for?"),
        ("birthplace", "river", "Which river runs through the town where {it} was born?"),
        ("birthplace", "founded", "When was the town founded in which {it} was born?"),
        ("university", "town", "In which town is the university where {it} studied?"),
        ("university", "founded", "In which year was the university founded where {it} studied?"),
    ],
    "river": [("mouth", "depth", "How deep is the lake into which the {it} flows, in metres?")],
}


def make_world(rng: random.Random) -> dict[str, Paragraph]:
    """The encyclopedia, by title."""
    world: dict[str, Paragraph] = {}

    def new(title: str, kind: str) -> Paragraph:
        if title in world:
            raise ValueError(f"two paragraphs are called {title!r}")
        world[title] = Paragraph(title, kind)
        return world[title]

    for lake in NAMES["lakes"]:
        _lake(new(lake, "lake"), rng)
    rivers = [f"River {name}" for name in NAMES["rivers"]]
    for river in rivers:
        _river(new(river, "river"), rng.choice(NAMES["lakes"] + NAMES["seas"]), rng.choice(NAMES["hills"]), rng)
    # Most towns lie on a river; which one is settled first, because bridges need a town on theirs.
    river_of = {town: rivers[index % len(rivers)] if index < 50 else None for index, town in enumerate(NAMES["towns"])}
    for town in NAMES["towns"]:
        _town(new(town, "town"), river_of[town], rng)
    universities = []
    for name in NAMES["universities"]:
        universities.append(f"{name} {rng.choice(['University', 'College', 'Academy'])}")
        _university(new(universities[-1], "university"), rng.choice(NAMES["towns"]), rng)
    names = _names(rng)
    books = rng.sample([f"The {first} {last}" for first in NAMES["book_first"] for last in NAMES["book_last"]], 45)
    for title in books:
        author, born = new(next(names), "person"), rng.randint(1820, 1940)
        _person(author, rng.choice(["novelist", "storyteller", "writer of novels"]), born, universities, rng)
        _book(new(title, "book"), author.title, born, rng)
    for name in NAMES["companies"]:
        founder, born = new(next(names), "person"), rng.randint(1820, 1940)
        _person(founder, rng.choice(["inventor", "merchant", "chemist", "industrialist"]), born, universities, rng)
        _company(new(f"{name} {rng.choice(list(MAKES))}", "company"), founder.title, born, rng)
    towns_on_rivers = [town for town in NAMES["towns"] if river_of[town]]
    for name, town in zip(NAMES["bridges"], rng.sample(towns_on_rivers, len(NAMES["bridges"])), strict=True):
        designer, born = new(next(names), "person"), rng.randint(1820, 1940)
        _person(designer, rng.choice(["architect", "engineer"]), born, universities, rng)
        _bridge(new(name, "bridge"), str(river_of[town]), town, designer.title, born, rng)
    for subject, town in zip(NAMES["museums"], rng.sample(NAMES["towns"], len(NAMES["museums"])), strict=True):
        _museum(new(f"Museum of {subject}", "museum"), town, subject.lower(), rng)
    return world


def make_questions(world: dict[str, Paragraph], rng: random.Random) -> list[dict[str, Any]]:
    """At most one question from each paragraph, in an order of chance."""
    rows = []
    for first in rng.sample(list(world.values()), len(world)):
        kinds = QUESTIONS.get(first.kind, [])
        for link, wanted, text in rng.sample(kinds, len(kinds)):
            sentence, title = first.facts.get(link, (0, ""))
            second = world.get(title)
            if second is None or wanted not in second.facts:
                continue
            answer_sentence, answer = second.facts[wanted]
            if answer in " ".join(first.sentences):
                continue  # one paragraph would be enough
            rows.append(
                {
                    "question": text.format(it=first.title),
                    "answer": answer,
                    "supporting_facts": [[first.title, sentence], [second.title, answer_sentence]],
                }
            )
            break
    return rows


def _names(rng: random.Random) -> Iterable[Any]:
    pairs = [f"{first} {last}" for first in NAMES["first_names"] for last in NAMES["last_names"]]
    return iter(rng.sample(pairs, 110))


def _lake(lake: Paragraph, rng: random.Random) -> None:
    lake.say(
        "{it} is a lake in {province}.", "{it} lies in {province}.", rng=rng, province=rng.choice(NAMES["provinces"])
    )
    lake.say(
        "At its deepest point it measures {depth} metres.",
        "Its greatest depth is {depth} metres.",
        rng=rng,
        depth=str(rng.randint(18, 310)),
    )
    lake.say(
        "The water freezes in most winters, and skaters cross it from shore to shore.",
        "Its shores are known for reeds and grey herons.",
        "A small steamer carries visitors across {it} in summer.",
        rng=rng,
    )


def _river(river: Paragraph, mouth: str, source: str, rng: random.Random) -> None:
    river.say("The {it} rises in the {source}.", "The springs of the {it} lie in the {source}.", rng=rng, source=source)
    river.say(
        "After {length} kilometres it flows into {mouth}.",
        "It is {length} kilometres long and ends in {mouth}.",
        rng=rng,
        length=str(rng.randint(40, 420)),
        mouth=mouth,
    )
    river.say(
        "Barges used the {it} until the railway came.",
        "In spring the {it} often floods the meadows beside it.",
        "Anglers come to the {it} for its trout.",
        rng=rng,
    )


def _town(town: Paragraph, river: str | None, rng: random.Random) -> None:
    town.say(
        "{it} is a town in {province}.",
        "{it} is a market town of {province}.",
        "{it}, a town of {people} people, belongs to {province}.".replace("{people}", f"{rng.randint(3, 90)},000"),
        rng=rng,
        province=rng.choice(NAMES["provinces"]),
    )
    town.say(
        "It was founded in {founded}.",
        "Its charter dates from {founded}, the year of its founding.",
        rng=rng,
        founded=str(rng.randint(980, 1650)),
    )
    if river is not None:
        town.say(
            "{it} lies on the {river}.",
            "The {river} flows through {it}.",
            "The old quarter of {it} stands on both banks of the {river}.",
            rng=rng,
            river=river,
        )
    town.say(
        "{it} is known for its {product}.",
        "Far beyond the province people know {it} for its {product}.",
        rng=rng,
        product=rng.choice(NAMES["products"]),
    )


def _university(university: Paragraph, town: str, rng: random.Random) -> None:
    university.say(
        "{it} is a place of learning in {town}.",
        "{it} stands on a hill above {town}.",
        rng=rng,
        town=town,
    )
    university.say(
        "It was founded in {founded}.",
        "The first students were admitted in {founded}, the year of its founding.",
        rng=rng,
        founded=str(rng.randint(1660, 1810)),
    )
    university.say(
        "Its library is open to everybody.",
        "{it} is best known for its school of " + rng.choice(NAMES["degrees"]) + ".",
        "A bell is rung there at the end of every lecture.",
        rng=rng,
    )


def _person(person: Paragraph, profession: str, born: int, universities: Sequence[str], rng: random.Random) -> None:
    surname = person.title.split()[-1]
    article = "an" if profession[0] in "aeiou" else "a"
    person.say(
        f"{{it}} was {article} {profession}, born in {{birthplace}} in {{born}}.",
        f"{{it}}, born in {{birthplace}} in {{born}}, was {article} {profession}.",
        f"Born in {{birthplace}} in {{born}}, {{it}} became known as {article} {profession}.",
        rng=rng,
        birthplace=rng.choice(NAMES["towns"]),
        born=str(born),
    )
    person.say(
        f"{surname} studied {rng.choice(NAMES['degrees'])} at {{university}}.",
        f"After school {surname} went to {{university}} to study {rng.choice(NAMES['degrees'])}.",
        f"{surname} was educated at {{university}}.",
        rng=rng,
        university=rng.choice(universities),
    )
    person.say(
        f"In later years {surname} kept bees and wrote long letters.",
        f"{surname} spoke four languages and never owned a clock.",
        "A street and a rose are named after {it}.",
        f"{surname} walked ten kilometres every day, whatever the weather.",
        rng=rng,
    )


def _book(book: Paragraph, author: str, born: int, rng: random.Random) -> None:
    book.say(
        "{it} is a novel by {author}.",
        "{it} is a novel that {author} wrote in a single winter.",
        "The novel {it} is the best-known work of {author}.",
        rng=rng,
        author=author,
    )
    book.say(
        "It appeared in {published}.",
        "It was first printed in {published}.",
        rng=rng,
        published=str(born + rng.randint(25, 60)),
    )
    book.say(
        "It tells of two sisters who inherit a ferry.",
        "It follows a surveyor who maps a valley that is about to be flooded.",
        "It is the story of a lighthouse keeper and a stolen violin.",
        "It describes one year in the life of a village baker.",
        "Its hero is a clockmaker who loses a bet.",
        rng=rng,
    )


def _company(company: Paragraph, founder: str, born: int, rng: random.Random) -> None:
    company.say(
        "{it} was founded by {founder} in {started}.",
        "{founder} founded {it} in {started}.",
        rng=rng,
        founder=founder,
        started=str(born + rng.randint(24, 50)),
    )
    company.say(
        "Its head office is in {seat}.",
        "The company has its head office in {seat}.",
        rng=rng,
        seat=rng.choice(NAMES["towns"]),
    )
    company.say(f"It makes {MAKES[company.title.split()[-1]]}.", rng=rng)
    company.say(
        f"About {rng.randint(2, 90)}00 people work for {{it}}.",
        "Its workers own a third of the company.",
        "{it} exports most of what it makes.",
        rng=rng,
    )


def _bridge(bridge: Paragraph, river: str, town: str, designer: str, born: int, rng: random.Random) -> None:
    bridge.say(
        "{it} crosses the {river} at {town}.", "At {town} {it} spans the {river}.", rng=rng, river=river, town=town
    )
    bridge.say(
        "It was designed by {designer} and opened in {opened}.",
        "The design is the work of {designer}; it was opened in {opened}.",
        rng=rng,
        designer=designer,
        opened=str(born + rng.randint(26, 60)),
    )
    bridge.say(
        f"{{it}} is {rng.randint(40, 390)} metres long.",
        "Only carts and people on foot may use it.",
        "It is lit by gas lamps to this day.",
        rng=rng,
    )


def _museum(museum: Paragraph, town: str, subject: str, rng: random.Random) -> None:
    museum.say("The {it} is in {town}.", "The {it} stands beside the town hall of {town}.", rng=rng, town=town)
    museum.say(
        "It opened in {opened}.",
        "Its doors were opened to the public in {opened}.",
        rng=rng,
        opened=str(rng.randint(1870, 1990)),
    )
    museum.say(
        f"Everything in it has to do with {subject}.",
        f"It shows a private collection of {subject}.",
        rng=rng,
    )


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    rng = random.Random(SEED)
    world = make_world(rng)
    questions = make_questions(world, rng)
    FOLDER.mkdir(exist_ok=True)
    _write("corpus", [{"title": entry.title, "text": entry.sentences} for entry in world.values()])
    start = 0
    for split, size in SPLITS.items():
        part = questions[start : start + size]
        _write(split, [{"id": f"{split}-{number:03d}", **row} for number, row in enumerate(part, start=1)])
        start += size


if __name__ == "__main__":
    main()
