"""Skills with numbers: counting, adding and subtracting numbers of at most two digits.

The thoughts work from the last digit to the first as on paper; direct answers have to do without.
"""

from models.training.draws import Draw, md5_bucket
from models.training.phrasing import template
from models.training.turns import Turn

MAX_COUNT_LENGTH = 21


def count(draw: Draw) -> Turn:
    """Counting upwards, in training also downwards and from one. Held-out: pairs of ends that training never has."""
    while True:
        first = draw.rng.randint(0, 99) if draw.chance(0.7) else draw.rng.randint(0, 9)
        last = first + draw.rng.randint(1, MAX_COUNT_LENGTH - 1)
        if last <= 110 and (md5_bucket(f"count {first} {last}", 8) != 0) == draw.training:
            break
    numbers = list(range(first, last + 1))
    key = "count"
    if draw.training and draw.chance(0.15):
        key, numbers = "count_down", numbers[::-1]
    elif draw.training and draw.chance(0.1):
        key, numbers = "count_one", list(range(1, draw.rng.randint(2, MAX_COUNT_LENGTH) + 1))
    question = template(draw, key).format(a=numbers[0], b=numbers[-1])
    thought = f"The user wants me to count from {numbers[0]} to {numbers[-1]}."
    return Turn(question, " ".join(map(str, numbers)), thought)


def add(draw: Draw) -> Turn:
    """The sum of two numbers."""
    first, second = draw.number_pair()
    ones = first % 10 + second % 10
    carry = ones // 10
    thought = (
        f"Ones: {first % 10}+{second % 10}={ones}, write {ones % 10}, carry {carry}. "
        f"Tens: {first // 10}+{second // 10}+{carry}={first // 10 + second // 10 + carry}. So {first + second}."
    )
    question = template(draw, "add").format(a=first, b=second)
    return Turn(question, f"{first} + {second} = {first + second}", thought)


def subtract(draw: Draw) -> Turn:
    """The difference of two numbers, negative half of the time in training when the operands come so."""
    first, second = draw.number_pair()
    question = template(draw, "subtract").format(a=first, b=second)
    return Turn(question, f"{first} - {second} = {first - second}", _subtraction(first, second))


def _subtraction(first: int, second: int) -> str:
    """The written method. The order is decided first, so that no later step has to know of the sign."""
    large, small = max(first, second), min(first, second)
    borrow = 1 if large % 10 < small % 10 else 0
    ones = large % 10 + 10 * borrow
    tens = large // 10 - borrow
    order = f"{first} is not less than {second}."
    if first < second:
        order = f"{first} is less than {second}: take {large} - {small}, with a minus."
    return (
        f"{order} Ones: {ones}-{small % 10}={ones - small % 10}, borrow {borrow}. "
        f"Tens: {large // 10}-{borrow}={tens}, {tens}-{small // 10}={tens - small // 10}. So {first - second}."
    )
