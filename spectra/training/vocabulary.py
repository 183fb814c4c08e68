"""What the generated texts are made of: words, and a source of choices.

The generators are pure functions of their seed. They draw from `random.Random` through its
``random()`` method alone, the only one whose sequence Python promises to keep between
versions, so a seed gives the same text everywhere.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
Noun = tuple[str, str]  # singular, plural
Person = tuple[str, str, str]  # name, pronoun, possessive

GIRLS = "Anna Clara Emma Grace Ida Julia Lily Maria Nora Rosa Sara Tina".split()
BOYS = "Adam Ben Carl David Felix Hugo Jack Leo Max Oscar Sam Tom".split()
COLOURS = "red blue green yellow white black brown grey".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
CITIES = "Paris London Rome Berlin Madrid Vienna Oslo Lisbon".split()
SEASONS = {
    "spring": ("March April May", "the flowers open and the birds come back"),
    "summer": ("June July August", "the days are long and the sun is hot"),
    "autumn": ("September October November", "the leaves turn brown and fall"),
    "winter": ("December January February", "the nights are long and the lake is frozen"),
}
ANIMALS = {  # sound, food, home, young
    "dog": ("barks", "meat", "a small house", "puppy"),
    "cat": ("purrs", "fish", "a warm kitchen", "kitten"),
    "cow": ("moos", "grass", "a barn", "calf"),
    "horse": ("neighs", "hay", "a stable", "foal"),
    "sheep": ("bleats", "clover", "a green field", "lamb"),
    "duck": ("quacks", "bread", "a pond", "duckling"),
    "frog": ("croaks", "flies", "a wet garden", "tadpole"),
    "lion": ("roars", "meat", "a rocky cave", "cub"),
    "owl": ("hoots", "mice", "a hollow tree", "owlet"),
    "bee": ("buzzes", "honey", "a hive", "grub"),
}
JOBS = {  # what they do, where
    "teacher": ("reads stories to the children", "school"),
    "baker": ("bakes bread before the sun is up", "bakery"),
    "farmer": ("feeds the cows and cuts the hay", "farm"),
    "doctor": ("helps people who are ill", "hospital"),
    "sailor": ("ties ropes and cleans the deck", "harbour"),
    "gardener": ("waters the flowers and plants trees", "park"),
    "driver": ("takes people from place to place", "station"),
    "painter": ("mixes colours and draws faces", "studio"),
}
THINGS = {  # material, a place it is kept in
    "ball": ("rubber", "under the bed"),
    "book": ("paper", "on the shelf"),
    "cup": ("glass", "in the kitchen"),
    "coat": ("wool", "behind the door"),
    "key": ("iron", "in a box"),
    "box": ("wood", "on the table"),
    "kite": ("paper", "in the garden"),
    "boat": ("wood", "by the river"),
    "drum": ("leather", "near the window"),
    "hat": ("straw", "on a chair"),
}
HIDING_PLACES = [where for _, where in THINGS.values()]
WEATHER = {  # what it did, what people wore or took
    "rainy": ("the streets were full of water", "an umbrella"),
    "sunny": ("the sky was blue all day", "a straw hat"),
    "windy": ("the leaves flew over the roofs", "a thick jacket"),
    "snowy": ("the garden was white and quiet", "warm gloves"),
    "foggy": ("nobody could see the church", "a small lamp"),
    "stormy": ("thunder rolled over the hills", "heavy boots"),
}
PLACES = "park school market river forest beach library station farm harbour".split()
MOODS = "happy tired hungry proud surprised calm sad brave".split()
TEMPERS = "kind clever shy funny quiet busy gentle curious".split()
FOODS: list[Noun] = [
    ("apple", "apples"),
    ("pear", "pears"),
    ("orange", "oranges"),
    ("cookie", "cookies"),
    ("egg", "eggs"),
    ("cake", "cakes"),
    ("plum", "plums"),
    ("carrot", "carrots"),
]
TOYS: list[Noun] = [
    ("marble", "marbles"),
    ("card", "cards"),
    ("coin", "coins"),
    ("shell", "shells"),
    ("stamp", "stamps"),
    ("button", "buttons"),
    ("stone", "stones"),
    ("pencil", "pencils"),
]
COMPARISONS = [  # more, most, the opposite of most
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("stronger", "strongest", "weakest"),
]
SIZES = ["bee", "frog", "duck", "cat", "sheep", "lion", "horse"]  # smallest first
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


class Draw:
    """Choices made through ``random()`` alone, see the module's docstring."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def between(self, low: int, high: int) -> int:
        """Draw a whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def one(self, items: Sequence[_Item]) -> _Item:
        """Draw one item."""
        return items[self.between(0, len(items) - 1)]

    def several(self, items: Sequence[_Item], n: int) -> list[_Item]:
        """Draw n different items in random order."""
        left = list(items)
        return [left.pop(self.between(0, len(left) - 1)) for _ in range(n)]

    def person(self) -> Person:
        """Draw a person."""
        if self.between(0, 1):
            return self.one(GIRLS), "she", "her"
        return self.one(BOYS), "he", "his"

    def two_people(self) -> tuple[Person, Person]:
        """Draw two people with different names."""
        first = second = self.person()
        while second == first:
            second = self.person()
        return first, second


def in_words(number: int) -> str:
    """Spell a number from 0 to 99 in English words.

    Parameters
    ----------
    number : int
        Between 0 and 99.

    Returns
    -------
    str
        For example ``"forty-two"``.

    Raises
    ------
    ValueError
        If the number is outside that range.
    """
    if not 0 <= number <= 99:
        raise ValueError(f"number must be between 0 and 99, got {number}.")
    if number < 20:
        return ONES[number]
    tens, ones = TENS[number // 10 - 2], number % 10
    return f"{tens}-{ONES[ones]}" if ones else tens


def with_article(word: str) -> str:
    """Put a or an before a word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def counted(number: int, noun: Noun) -> str:
    """Put a number before a noun in the right form."""
    return f"{in_words(number)} {noun[number != 1]}"
