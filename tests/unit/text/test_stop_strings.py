"""Stop strings: the same cut whatever the pieces, and nothing held back without need."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import StopStrings

CHARS = st.sampled_from("abc")


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    found = [(text.find(stop), rank) for rank, stop in enumerate(stops) if stop in text]
    if not found:
        return text, None
    start, rank = min(found)
    return text[:start], stops[rank]


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str | None]:
    strings = StopStrings(stops)
    out = ""
    for piece in pieces:
        safe, matched = strings.push(piece)
        out += safe
        assert matched is None or matched == strings.matched
    return out + strings.finish(), strings.matched


@settings(max_examples=500)
@given(
    pieces=st.lists(st.text(CHARS, max_size=4), max_size=10),
    stops=st.lists(st.text(CHARS, min_size=1, max_size=5), max_size=4).map(tuple),
)
def test_any_pieces_give_the_cut_of_the_whole_text(pieces: list[str], stops: tuple[str, ...]) -> None:
    assert run(pieces, stops) == expected("".join(pieces), stops)


@settings(max_examples=300)
@given(text=st.text(CHARS, max_size=20), stops=st.lists(st.text(CHARS, min_size=1, max_size=5), max_size=4).map(tuple))
def test_no_more_is_held_back_than_a_live_prefix(text: str, stops: tuple[str, ...]) -> None:
    strings = StopStrings(stops)
    out = ""
    for position, char in enumerate(text):
        safe, matched = strings.push(char)
        out += safe
        if matched is not None:
            return
        held = text[len(out) : position + 1]
        assert len(held) <= max(map(len, stops), default=1) - 1
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "result"),
    [
        (["Hello\n", "\nUser: x"], ("\n\nUser:",), ("Hello", "\n\nUser:")),
        (["ab", "d"], ("abc", "b"), ("a", "b")),
        (["ab", "c"], ("abc", "b"), ("", "abc")),
        (["ab"], ("abc", "b"), ("a", "b")),
        (["ab", "c"], ("ab", "abc"), ("", "ab")),
        (["END"], ("END",), ("", "END")),
        (["EN"], ("END",), ("EN", None)),
        (["a🎉b"], ("🎉",), ("a", "🎉")),
    ],
)
def test_examples(pieces: list[str], stops: tuple[str, ...], result: tuple[str, str | None]) -> None:
    assert run(pieces, stops) == result


def test_text_after_the_match_is_ignored() -> None:
    strings = StopStrings(("x",))
    assert strings.push("ax") == ("a", "x")
    assert strings.push("b") == ("", None)
    assert strings.finish() == ""
    assert strings.matched == "x"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(("a", ""))


@settings(max_examples=500)
@given(
    pieces=st.lists(st.text(CHARS, max_size=4), max_size=10),
    stops=st.lists(st.text(CHARS, min_size=1, max_size=5), max_size=4).map(tuple),
    num_immune=st.integers(0, 10),
    keep=st.booleans(),
)
def test_what_is_complete_too_early_does_not_count(
    pieces: list[str], stops: tuple[str, ...], num_immune: int, keep: bool
) -> None:
    text = "".join(pieces)
    length = len("".join(pieces[:num_immune]))
    found = [
        (start, rank)
        for rank, stop in enumerate(stops)
        for start in range(len(text))
        if text.startswith(stop, start) and start + len(stop) > length
    ]
    start, rank = min(found, default=(len(text), -1))
    end = start + len(stops[rank]) if found and keep else start
    strings = StopStrings(stops, keep=keep)
    out = "".join(strings.push(piece, may_end=i >= num_immune)[0] for i, piece in enumerate(pieces))
    assert out + strings.finish() == text[:end]
    assert strings.matched == (stops[rank] if found else None)


def test_a_stop_string_that_began_early_counts_when_it_is_complete_late() -> None:
    strings = StopStrings(("abc", "b"))
    assert strings.push("ab", may_end=False) == ("", None)
    assert strings.push("c") == ("", "abc")
    strings = StopStrings(("b",))
    assert strings.push("ab", may_end=False) == ("ab", None)
    assert strings.push("ab") == ("a", "b")


def test_stop_strings_that_nearly_match_everywhere_cost_no_more_than_others() -> None:
    """One holds a thousand characters back, and each of the others begins anew at every one of them."""
    strings = StopStrings(("a" * 1023 + "b", *("a" * i + "b" * (1024 - i) for i in range(1, 16))))
    started = time.process_time()
    assert "".join(strings.push("a")[0] for _ in range(3000)) == "a" * (3000 - 1023)
    # It takes 0.07 s; 8 s where every start is tried.
    assert time.process_time() - started < 2
