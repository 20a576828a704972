"""Calls take turns; memory is what a call needs."""

import pytest
from paperkit import UserError, timing


def test_calls_take_turns_after_warming_up():
    told = []
    times = timing.in_turns({name: lambda name=name: told.append(name) for name in "ab"}, 4)
    assert "".join(told) == "a" * timing.WARM + "b" * timing.WARM + "ab" * 4
    assert {name: len(each) for name, each in times.items()} == {"a": 4, "b": 4}


def test_short_calls_are_repeated_within_a_round():
    """By a clock of our own that a call moves on: no machine's load decides."""
    now, waited = [0.0], []

    def call() -> None:
        now[0] += 0.25

    times = timing.in_turns({"x": call}, 2, 1.0, lambda: waited.append(1), lambda: now[0])
    assert times == {"x": [0.25, 0.25]}
    assert now[0] == 0.25 * (timing.WARM + 2 * 4)
    assert len(waited) == 2 * 3  # before and after each round


def test_median_is_in_milliseconds():
    assert timing.median_ms([0.001, 9.0, 0.002]) == 2.0


def test_growth_is_what_a_call_touches():
    """In a process of its own: memory that earlier tests gave back would hide a peak."""
    code = (
        "import sys\nfrom paperkit.timing import growth_mib\n"
        "print(growth_mib(lambda: bytearray(b'1') * (int(sys.argv[1]) * 2**20)))"
    )
    assert 60 < timing.in_own_process(code, "64") < 80
    assert timing.in_own_process(code, "0") < 8


def test_peak_covers_the_process():
    assert 10 < timing.peak_mib() < 100_000


def test_what_fails_there_is_said_in_one_line():
    with pytest.raises(UserError, match="a measured process failed: ValueError: no"):
        timing.in_own_process("raise ValueError('no')")
