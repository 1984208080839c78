"""Two small tasks to fine-tune for, with answers that are right or wrong: every example is made here, from a seed.

dates: the date in a sentence, as YYYY-MM-DD. orders: an order in a sentence, as JSON. Training and test never share a
year of a date, nor a name or an item of an order; validation has names and items of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

Split = Literal["train", "validation", "test"]


class Example(NamedTuple):
    prompt: str
    answer: str


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
            "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
            "twentieth", "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth",
            "twenty-sixth", "twenty-seventh", "twenty-eighth")  # fmt: skip
EVENTS = ("The bridge was opened", "She signed the lease", "The ship left port", "Their first album came out",
          "He was born", "The parcel arrived", "The court decided", "We moved in", "The lights went out",
          "The school closed", "Snow fell", "The contract ended")  # fmt: skip

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ITEMS = ("pears", "lamps", "chairs", "tyres", "candles", "bricks", "mugs", "blankets", "kettles", "drills", "ladders",
         "onions", "towels", "mirrors", "pillows", "hammers", "baskets", "carpets", "bottles", "brushes", "clocks",
         "plates", "ropes", "tents")  # fmt: skip
TEST_ITEMS = ("apples", "tables", "shovels", "curtains", "books", "stoves", "helmets", "buckets")
VALIDATION_ITEMS = ("plums", "benches", "saws", "cushions", "maps", "ovens", "gloves", "jars")
NAMES = ("Novak", "Okafor", "Lindqvist", "Moreau", "Tanaka", "Silva", "Kowalski", "Haddad", "Jensen", "Murphy", "Rossi",
         "Nguyen", "Weber", "Iyer", "Petrov", "Garcia", "Cohen", "Yilmaz", "Fraser", "Bauer")  # fmt: skip
TEST_NAMES = ("Duval", "Santos", "Keller", "Ortiz", "Brandt", "Mensah", "Larsen", "Walsh")
VALIDATION_NAMES = ("Ferrer", "Olsen", "Hoang", "Pereira", "Schmidt", "Adjei", "Quinn", "Marek")


def date(chance: random.Random, split: Split) -> Example:
    years = {"train": range(1900, 2030), "validation": range(1900, 2030), "test": range(1903, 2030, 5)}[split]
    year = chance.choice([y for y in years if (y % 5 == 3) == (split == "test")])
    month, day = chance.randint(1, 12), chance.randint(1, 28)
    name = MONTHS[month - 1]
    suffix = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    written = chance.choice(
        (
            f"on {day} {name} {year}",
            f"on {name} {day}{suffix}, {year}",
            f"on {name} {day}, {year}",
            f"on the {ORDINALS[day - 1]} of {name}, {year}",
            f"on the {day}{suffix} of {name} {year}",
            f"in {year}, on the {ORDINALS[day - 1]} of {name}",
            f"in {name} {year}, on the {day}{suffix}",
            f"on {day} {name[:3]}. {year}",
        )
    )
    sentence = f"{chance.choice(EVENTS)} {written}."
    return Example(f"The date as YYYY-MM-DD: {sentence}", f"{year:04}-{month:02}-{day:02}")


def order(chance: random.Random, split: Split) -> Example:
    item = chance.choice({"train": ITEMS, "validation": VALIDATION_ITEMS, "test": TEST_ITEMS}[split])
    name = chance.choice({"train": NAMES, "validation": VALIDATION_NAMES, "test": TEST_NAMES}[split])
    day, count = chance.choice(DAYS), chance.randint(2, 12)
    number = chance.choice((NUMBERS[count - 2], str(count)))
    title = chance.choice(("Ms", "Mr", "Dr"))
    sentence = chance.choice(
        (
            f"{title} {name} wants {number} {item} by {day}.",
            f"Please send {number} {item} to {title} {name} on {day}.",
            f"By {day}, {title} {name} will need {number} {item}.",
            f"{number.capitalize()} {item} for {title} {name}, {day} please.",
            f"It is {title} {name} again: {number} {item} this time, and {day} will do.",
            f"On {day} we deliver {number} {item}; the customer is {title} {name}.",
        )
    )
    answer = json.dumps({"item": item, "count": count, "customer": name, "day": day})
    return Example(f"The order as JSON (item, count, customer, day): {sentence}", answer)


TASKS: dict[str, Callable[[random.Random, Split], Example]] = {"dates": date, "orders": order}


def examples(task: str, count: int, split: Split, seed: int = 0) -> list[Example]:
    """`count` examples of a task. Those of the test have years, names and items that training has not, those of the
    validation names and items that neither has."""
    chance = random.Random(f"{task} {split} {seed}")
    return [TASKS[task](chance, split) for _ in range(count)]
