"""Plain prose to pre-train the bundled model on; it needs no download."""

from collections.abc import Callable, Iterator

from spectra.training.vocabulary import (
    ANIMALS,
    BOYS,
    CITIES,
    COLOURS,
    COMPARISONS,
    DAYS,
    FOODS,
    GIRLS,
    HIDING_PLACES,
    JOBS,
    MOODS,
    PLACES,
    SEASONS,
    SIZES,
    TEMPERS,
    THINGS,
    TOYS,
    WEATHER,
    Draw,
    counted,
    in_words,
    with_article,
)

# Prose: every function writes one short text that hangs together, so that what comes late can
# be told from what came early.


def _story(draw: Draw) -> str:
    (hero, he, his), (friend, _, _) = draw.two_people()
    thing, colour, mood = draw.one(list(THINGS)), draw.one(COLOURS), draw.one(MOODS)
    place, other_place = draw.several(PLACES, 2)
    start = draw.one(
        [
            f"Once there was a {draw.one(TEMPERS)} child named {hero}.",
            f"{hero} was a {draw.one(TEMPERS)} child who lived near the {other_place}.",
            f"Long ago, in a house by the {other_place}, lived {hero}.",
        ]
    )
    found = draw.one(
        [
            f"One {draw.one(DAYS)} {he} found {with_article(colour)} {thing} at the {place}.",
            f"One morning {hero} walked to the {place} and saw a {colour} {thing}.",
            f"At the {place} {he} lost {his} {colour} {thing}, and {friend} found it.",
        ]
    )
    middle = draw.one(
        [
            f'"Is this your {thing}?" asked {friend}. "Yes, the {colour} {thing} is mine," '
            f"said {hero}.",
            f"{hero} showed the {thing} to {friend}, and they played with it until evening.",
            f'"What a {draw.one(["fine", "big", "strange"])} {thing}!" said {friend}.',
        ]
    )
    end = draw.one(
        [
            f"Then {hero} and {friend} went home from the {place}. {hero} was {mood}.",
            f"{hero} was {mood} and put the {colour} {thing} {THINGS[thing][1]}.",
            f"From that day on {hero} and {friend} were good friends.",
        ]
    )
    return f"{start} {found} {middle} {end}"


def _person(draw: Draw) -> str:
    (name, he, his), job, age = draw.person(), draw.one(list(JOBS)), draw.between(20, 69)
    does, where = JOBS[job]
    food, city = draw.one(FOODS)[1], draw.one(CITIES)
    facts = [
        f"{he.capitalize()} is {in_words(age)} years old.",
        f"Every day {he} {does}.",
        f"{he.capitalize()} lives in {city}.",
        f"{he.capitalize()} likes {food} and {draw.one(COLOURS)} flowers.",
        f"People say that {name} is {draw.one(TEMPERS)}.",
        f"Next year {name} will be {in_words(age + 1)}.",
        f"You can find {name} at the {where}.",
        f"{his.capitalize()} house has {counted(draw.between(2, 9), ('room', 'rooms'))}.",
    ]
    return " ".join([f"{name} is a {job}.", *draw.several(facts, 4)])


def _animal(draw: Draw) -> str:
    animal = draw.one(list(ANIMALS))
    sound, food, home, young = ANIMALS[animal]
    name, owner = draw.one(["Bella", "Rex", "Luna", "Toby", "Daisy"]), draw.person()[0]
    facts = [
        f"{with_article(animal).capitalize()} eats {food}.",
        f"The {animal} {sound} when it is {draw.one(['happy', 'hungry', 'awake'])}.",
        f"A young {animal} is called {with_article(young)}.",
        f"{name} lives in {home}.",
        f"{owner} gives {name} {food} every {draw.one(['morning', 'evening', *DAYS])}.",
        f"At night {name} sleeps in {home}.",
    ]
    start = f"{owner} has {with_article(animal)} named {name}. {name} is {draw.one(COLOURS)}."
    return " ".join([start, *draw.several(facts, 3)])


def _place(draw: Draw) -> str:
    (name, he, _), place, day = draw.person(), draw.one(PLACES), draw.between(0, 6)
    first, second = draw.several(list(THINGS), 2)
    colour, other = draw.several(COLOURS, 2)
    here = draw.one(["There is", "You can see"])
    return (
        f"The {place} is {draw.one(['large', 'small', 'old', 'quiet', 'full of people'])}. "
        f"{here} {with_article(colour)} {first} and {with_article(other)} {second}. "
        f"The {first} is {colour}, and the {second} is {other}. "
        f"{name} goes to the {place} on {DAYS[day]}, and {he} comes back on {DAYS[(day + 1) % 7]}."
    )


def _weather(draw: Draw) -> str:
    (name, he, _), day, place = draw.person(), draw.between(0, 6), draw.one(PLACES)
    first, second = draw.several(list(WEATHER), 2)
    return (
        f"On {DAYS[day]} it was {first}, and {WEATHER[first][0]}. "
        f"{name} took {WEATHER[first][1]} and went to the {place}. "
        f"On {DAYS[(day + 1) % 7]} it was {second}, and {WEATHER[second][0]}. "
        f"This time {he} {draw.one(['took', 'needed', 'asked for'])} {WEATHER[second][1]}. "
        f"{name} likes {draw.one([first, second])} days."
    )


def _thing(draw: Draw) -> str:
    (name, he, _), (thing, other) = draw.person(), draw.several(list(THINGS), 2)
    colour, other_colour = draw.several(COLOURS, 2)
    last = draw.one(
        [
            f"The {thing} is {colour} and the {other} is {other_colour}.",
            f"When {he} needs the {thing}, {he} looks {THINGS[thing][1]}.",
            f"The {colour} {thing} belongs to {name}.",
        ]
    )
    return (
        f"This is {name}'s {thing}. It is {colour} and made of {THINGS[thing][0]}. "
        f"{he.capitalize()} keeps it {THINGS[thing][1]}. {name} also has "
        f"{with_article(other_colour)} {other} made of {THINGS[other][0]}. {last}"
    )


def _comparison(draw: Draw) -> str:
    if draw.between(0, 1):
        first, second, third = draw.several(GIRLS + BOYS, 3)
        more, most, least = draw.one(COMPARISONS)
        end = draw.one([f"{first} is the {most}", f"{third} is the {least}"])
        return (
            f"{first} is {more} than {second}. {second} is {more} than {third}. "
            f"So {first} is {more} than {third}. Of the three, {end}."
        )
    small, middle, large = (SIZES[i] for i in sorted(draw.several(range(len(SIZES)), 3)))
    return (
        f"A {middle} is bigger than a {small}. A {large} is bigger than a {middle}. "
        f"So a {small} is smaller than a {large}, and of the three the {large} is the biggest."
    )


_WAYS_TO_WRITE: list[Callable[[int], str]] = [str, in_words]


def _counting(draw: Draw) -> str:
    start, length, by = draw.between(1, 40), draw.between(5, 9), draw.one([1, 1, 2, 5, 10])
    numbers = [start + by * i for i in range(length) if start + by * i <= 99]
    direction = "up"
    if draw.between(0, 2) == 0:
        numbers, direction = numbers[::-1], "down"
    write = draw.one(_WAYS_TO_WRITE)
    steps = "" if by == 1 else f" in steps of {write(by)}"
    listed = ", ".join(write(number) for number in numbers)
    return (
        f"{draw.person()[0]} counts {direction} from {write(numbers[0])}{steps}: {listed}. "
        f"The last number is {write(numbers[-1])}."
    )


def _sums(draw: Draw) -> str:
    sentences = []
    for _ in range(draw.between(3, 5)):
        a, b = draw.between(1, 20), draw.between(1, 12)
        low, high = sorted((a, b))
        x, y = draw.between(2, 9), draw.between(2, 9)
        sentences.append(
            draw.one(
                [
                    f"{in_words(a)} and {in_words(b)} make {in_words(a + b)}.",
                    f"{in_words(high)} take away {in_words(low)} leaves {in_words(high - low)}.",
                    f"{in_words(x)} times {in_words(y)} is {in_words(x * y)}.",
                    f"half of {in_words(2 * a)} is {in_words(a)}.",
                ]
            ).capitalize()
        )
    return " ".join(sentences)


def _giving(draw: Draw) -> str:
    (giver, he, _), (taker, she, _) = draw.two_people()
    noun, colour = draw.one(FOODS + TOYS), draw.one(COLOURS)
    has, more = draw.between(3, 15), draw.between(1, 6)
    given = draw.between(1, has + more)
    described = (f"{colour} {noun[0]}", f"{colour} {noun[1]}")
    return (
        f"{giver} has {counted(has, described)}. {he.capitalize()} finds "
        f"{in_words(more)} more and now has {counted(has + more, described)}. "
        f"{giver} gives {taker} {counted(given, noun)}. "
        f"Now {giver} has {counted(has + more - given, noun)} left, and {taker} is "
        f"{draw.one(MOODS)} because {she} got {counted(given, noun)}."
    )


def _search(draw: Draw) -> str:
    (name, he, his), (helper, _, _) = draw.two_people()
    thing, (wrong, right) = draw.one(list(THINGS)), draw.several(HIDING_PLACES, 2)
    found = draw.one([f"{name} looked {right} and found the {thing}", f"The {thing} was {right}"])
    return (
        f'"Where is my {thing}?" asked {name}. {he.capitalize()} looked {wrong}, but the {thing} '
        f'was not there. "I saw the {thing} {right}," said {helper}. {found}. '
        f"{name} was {draw.one(MOODS)} to have {his} {thing} again."
    )


def _calendar(draw: Draw) -> str:
    season = draw.one(list(SEASONS))
    months, scene = SEASONS[season]
    day, number, hour = draw.between(0, 6), draw.between(2, 99), draw.between(1, 9)
    rides = draw.between(1, 3)
    facts = [
        f"The months of {season} are {', '.join(months.split())}.",
        f"After {DAYS[day]} comes {DAYS[(day + 1) % 7]}.",
        f"Before {DAYS[day]} comes {DAYS[(day - 1) % 7]}.",
        f"In {season} {scene}.",
        f"Train {number} goes to {draw.one(CITIES)}. It leaves at {hour} and takes {rides} "
        f"{'hour' if rides == 1 else 'hours'}, so it arrives at {hour + rides}.",
        f"Bus {number} is full, so we wait for bus {number + 1}.",
    ]
    return " ".join(draw.several(facts, 4))


def _journey(draw: Draw) -> str:
    (name, he, _), stops = draw.person(), draw.several(PLACES, 3)
    cities = draw.several(CITIES, 2)
    mood = draw.one(["very ", "a little ", ""]) + draw.one(MOODS)
    return (
        f"{name} travels from {cities[0]} to {cities[1]}. In {cities[1]} {he} first visits the "
        f"{stops[0]}, then the {stops[1]}, and last the {stops[2]}. At the {stops[0]} {he} buys "
        f"{draw.one(FOODS)[1]}. At the {stops[1]} {he} meets a {draw.one(list(JOBS))}. From the "
        f"{stops[2]} {name} goes back to {cities[0]} and is {mood}."
    )


_PROSE: list[Callable[[Draw], str]] = [
    *(_story, _person, _animal, _place, _weather, _thing, _comparison, _counting),
    *(_sums, _giving, _search, _calendar, _journey),
]


def pretraining_text(seed: int, n: int) -> Iterator[str]:
    """Write short pieces of simple English prose.

    Stories, descriptions, facts, comparisons, counting and sums in words; every piece stands
    alone, and its later sentences repeat or follow from its earlier ones.

    Parameters
    ----------
    seed : int
        The same seed gives the same pieces; a larger ``n`` only continues them.
    n : int
        How many pieces.

    Yields
    ------
    str
        One piece, a single line of a few sentences.
    """
    draw = Draw(seed)
    for _ in range(n):
        yield draw.one(_PROSE)(draw)
