"""Word problems with worked solutions to fine-tune on; they need no download."""

from collections.abc import Callable, Iterator

from spectra.training.vocabulary import BOYS, DAYS, FOODS, GIRLS, JOBS, THINGS, TOYS, Draw

# Word problems: every function returns a question, the lines of its solution, and the result.

_Problem = tuple[str, list[str], int]


def _step(a: int, operator: str, b: int) -> tuple[str, int]:
    """Write ``a operator b = c`` out, with c."""
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    return f"{a} {operator} {b} = {result}", result


def _gain_and_loss(draw: Draw) -> _Problem:
    (name, he, _), things = draw.person(), draw.one(FOODS + TOYS)[1]
    has, more = draw.between(5, 30), draw.between(2, 20)
    lost = draw.between(2, has + more - 2)
    finds, loses = draw.one(["finds", "buys", "gets"]), draw.one(["gives away", "loses", "sells"])
    first, total = _step(has, "+", more)
    second, left = _step(total, "-", lost)
    question = draw.one(
        [
            f"{name} has {has} {things}. {he.capitalize()} {finds} {more} more and then {loses} "
            f"{lost}. How many {things} does {name} have left?",
            f"How many {things} does {name} have in the end, if {he} starts with {has}, {finds} "
            f"{more} and {loses} {lost}?",
        ]
    )
    steps = [
        f"{name} {finds} {more}, so {he} has {first} {things}.",
        f"Then {he} {loses} {lost}, so {he} has {second} {things}.",
    ]
    return question, steps, left


def _shopping(draw: Draw) -> _Problem:
    (name, he, _), foods, price = draw.person(), draw.one(FOODS)[1], draw.between(2, 6)
    count, extra = draw.between(2, 9), draw.between(2, 12)
    toy = draw.one(list(THINGS))
    first, cost = _step(count, "*", price)
    second, total = _step(cost, "+", extra)
    paid = total + draw.between(2, 20)
    third, change = _step(paid, "-", total)
    steps = [
        f"The {foods} cost {first} dollars.",
        f"With the {toy} {name} pays {second} dollars.",
    ]
    told = f"{name} buys {count} {foods} for {price} dollars each and a {toy} for {extra} dollars."
    if draw.between(0, 1):
        return f"{told} How many dollars does {he} spend?", steps, total
    question = f"{told} {he.capitalize()} had {paid} dollars. How many dollars are left?"
    return question, [*steps, f"There are {third} dollars left."], change


def _boxes(draw: Draw) -> _Problem:
    name, things = draw.person()[0], draw.one(FOODS + TOYS)[1]
    holder = draw.one(["bags", "boxes", "baskets", "jars"])
    groups, each, loose = draw.between(2, 9), draw.between(3, 12), draw.between(2, 15)
    first, packed = _step(groups, "*", each)
    second, total = _step(packed, "+", loose)
    question = draw.one(
        [
            f"There are {groups} {holder} with {each} {things} in each, and {loose} more on the "
            f"table. How many {things} are there?",
            f"{name} fills {groups} {holder} with {each} {things} each. {loose} {things} do not "
            f"fit. How many {things} does {name} have?",
        ]
    )
    steps = [f"The {holder} hold {first} {things}.", f"In all there are {second} {things}."]
    return question, steps, total


def _saving(draw: Draw) -> _Problem:
    (name, he, _), thing = draw.person(), draw.one(list(THINGS))
    weekly, weeks = draw.between(3, 9), draw.between(3, 9)
    start, spent = draw.between(2, 10), draw.between(2, weekly * weeks)
    first, saved = _step(weekly, "*", weeks)
    second, total = _step(saved, "+", start)
    third, left = _step(total, "-", spent)
    question = (
        f"{name} has {start} dollars and saves {weekly} dollars a week for {weeks} weeks. Then "
        f"{he} buys a {thing} for {spent} dollars. How many dollars does {name} have now?"
    )
    steps = [
        f"{name} saves {first} dollars.",
        f"Before buying the {thing}, {he} has {second} dollars.",
        f"After that {he} has {third} dollars.",
    ]
    return question, steps, left


def _reading(draw: Draw) -> _Problem:
    (name, he, _), days, daily = draw.person(), draw.between(2, 6), draw.between(3, 12)
    rest, done = draw.between(2, 9), draw.between(5, 20)
    pages = done + rest * daily
    first, left = _step(pages, "-", done)
    if draw.between(0, 1):
        second, needed = _step(left, "/", daily)
        question = (
            f"A book has {pages} pages. {name} has read {done} of them and reads {daily} pages a "
            f"day. How many days does {he} need for the rest?"
        )
        steps = [f"There are {first} pages left.", f"That takes {second} days."]
        return question, steps, needed
    second, later = _step(days, "*", daily)
    third, total = _step(done, "+", later)
    question = (
        f"{name} read {done} pages on {draw.one(DAYS)} and then {daily} pages a day for {days} "
        f"days. How many pages did {he} read?"
    )
    steps = [f"In {days} days {name} read {second} pages.", f"Together that is {third} pages."]
    return question, steps, total


def _sharing(draw: Draw) -> _Problem:
    ((name, _, _), (friend, _, _)), things = draw.two_people(), draw.one(FOODS + TOYS)[1]
    children, each = draw.between(2, 8), draw.between(2, 9)
    total = children * each
    has = draw.between(2, total - 2)
    first, _ = _step(has, "+", total - has)
    second, share = _step(total, "/", children)
    question = (
        f"{name} has {has} {things} and {friend} has {total - has}. They share all of them "
        f"equally among {children} children. How many {things} does each child get?"
    )
    steps = [f"Together they have {first} {things}.", f"Each child gets {second} {things}."]
    return question, steps, share


def _ages(draw: Draw) -> _Problem:
    name, sibling, parent = draw.several(GIRLS + BOYS, 3)
    age, older, times = draw.between(3, 12), draw.between(2, 9), draw.between(2, 4)
    first, sibling_age = _step(age, "+", older)
    second, parent_age = _step(sibling_age, "*", times)
    told = (
        f"{name} is {age} years old. {sibling} is {older} years older than {name}, and {parent} "
        f"is {times} times as old as {sibling}."
    )
    steps = [f"{sibling} is {first} years old.", f"{parent} is {second} years old."]
    if draw.between(0, 1):
        return f"{told} How old is {parent}?", steps, parent_age
    years = draw.between(2, 9)
    third, later = _step(parent_age, "+", years)
    question = f"{told} How old will {parent} be in {years} years?"
    return question, [*steps, f"In {years} years {parent} will be {third}."], later


def _farm(draw: Draw) -> _Problem:
    name, birds = draw.person()[0], draw.one(["ducks", "hens"])
    beasts = draw.one(["cows", "sheep", "horses"])
    two_legged, four_legged = draw.between(2, 12), draw.between(2, 12)
    first, bird_legs = _step(two_legged, "*", 2)
    second, beast_legs = _step(four_legged, "*", 4)
    third, legs = _step(bird_legs, "+", beast_legs)
    question = (
        f"On a farm {name} counts {two_legged} {birds} and {four_legged} {beasts}. How many legs "
        "do they have?"
    )
    steps = [
        f"The {birds} have {first} legs.",
        f"The {beasts} have {second} legs.",
        f"Together they have {third} legs.",
    ]
    return question, steps, legs


def _wages(draw: Draw) -> _Problem:
    (name, he, _), job = draw.person(), draw.one(list(JOBS))
    hourly, hours, days = draw.between(3, 9), draw.between(2, 6), draw.between(2, 5)
    first, daily = _step(hourly, "*", hours)
    second, total = _step(daily, "*", days)
    question = (
        f"{name} is a {job} and gets {hourly} dollars an hour. {he.capitalize()} works {hours} "
        f"hours a day for {days} days. How many dollars does {he} get?"
    )
    steps = [f"In a day {he} gets {first} dollars.", f"In {days} days that is {second} dollars."]
    return question, steps, total


def _baking(draw: Draw) -> _Problem:
    (name, he, _), foods, trays = draw.person(), draw.one(FOODS)[1], draw.between(2, 8)
    each, price = draw.between(4, 12), draw.between(2, 5)
    first, baked = _step(trays, "*", each)
    kept = draw.between(2, baked - 2)
    second, sold = _step(baked, "-", kept)
    question = (
        f"{name} has {trays} trays of {each} {foods}. {he.capitalize()} keeps {kept} and sells "
        f"the rest"
    )
    steps = [f"On the trays are {first} {foods}.", f"{name} sells {second} {foods}."]
    if draw.between(0, 1):
        return f"{question}. How many {foods} does {he} sell?", steps, sold
    third, earned = _step(sold, "*", price)
    question = f"{question} for {price} dollars each. How many dollars does {he} earn?"
    return question, [*steps, f"For them {he} gets {third} dollars."], earned


_PROBLEMS: list[Callable[[Draw], _Problem]] = [
    *(_gain_and_loss, _shopping, _boxes, _saving, _reading),
    *(_sharing, _ages, _farm, _wages, _baking),
]


def word_problems(seed: int, n: int) -> Iterator[dict[str, str]]:
    """Write grade-school word problems with worked solutions, in GSM8K's columns.

    A solution has two or three steps, one a line, each with one ``a + b = c`` (or ``-``, ``*``,
    ``/``, always exact, in whole numbers), and ends in GSM8K's final line ``#### <number>``.
    None of its templates is among those of `pretraining_text`.

    Parameters
    ----------
    seed : int
        The same seed gives the same problems; a larger ``n`` only continues them.
    n : int
        How many problems.

    Yields
    ------
    dict of str to str
        ``question`` and ``answer``.
    """
    draw = Draw(seed)
    for _ in range(n):
        question, steps, result = draw.one(_PROBLEMS)(draw)
        yield {"question": question, "answer": "\n".join([*steps, f"#### {result}"])}
