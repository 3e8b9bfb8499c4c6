from collections import Counter

import pytest

from mammo_pd.keep_schedule import KeepSchedule


def rates(text: str | float, epochs: int) -> list[float]:
    schedule = KeepSchedule.parse(text)
    return [schedule.keep_rate(epoch, epochs, 0, 0) for epoch in range(epochs)]


def test_number_is_constant() -> None:
    assert rates(0.25, 4) == rates("0.25", 4) == [0.25] * 4


def test_linear_goes_from_the_first_to_the_last_epoch() -> None:
    assert rates("0.2:0.5", 4) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert rates("0.5:0.1", 2) == pytest.approx([0.5, 0.1])
    assert rates("0.5:0.1", 1) == [0.5]


def test_linear_takes_few_values_however_many_epochs() -> None:
    many = rates("0.1:0.8", 100)
    # Each the nearest to the straight line.
    line = [0.1 + 0.7 * epoch / 99 for epoch in range(100)]
    assert max(abs(rate - at) for rate, at in zip(many, line, strict=True)) < 0.7 / 7 / 2
    assert many == sorted(many)
    assert (many[0], many[-1]) == (0.1, pytest.approx(0.8))
    assert len(set(many)) == 8


def test_no_rate_is_above_the_base() -> None:
    """By rounding 0.2:1.0 came to 1.0000000000000002 in the last of four epochs."""
    for first in range(1, 101):
        for last in (0.05, 0.2, 0.25, 0.7, 1.0):
            schedule = KeepSchedule.parse(f"{first / 100}:{last}")
            for epochs in (2, 3, 4, 7, 8, 12, 30):
                drawn = [schedule.keep_rate(epoch, epochs, 0, 0) for epoch in range(epochs)]
                assert max(drawn) == schedule.base
                assert drawn[-1] == last


def test_full_epochs_come_last() -> None:
    assert rates("0.25+2", 5) == [0.25, 0.25, 0.25, 1, 1]
    assert rates("0.2:0.4+1", 4) == pytest.approx([0.2, 0.3, 0.4, 1])


def test_random_follows_the_official_code() -> None:
    """Half of the steps keep all; the others 1 less a number of 0 to 10 twentieths."""
    schedule = KeepSchedule.parse("random+1")
    drawn = [schedule.keep_rate(epoch, 41, step, 7) for epoch in range(40) for step in range(100)]
    counts = Counter(round(rate * 20) for rate in drawn)
    assert set(counts) == set(range(10, 21))
    # All: a half, and one in eleven of the other half; 4000 draws.
    assert abs(counts[20] / 4000 - (0.5 + 0.5 / 11)) < 0.04
    assert max(abs(counts[n] / 4000 - 0.5 / 11) for n in range(10, 20)) < 0.02
    assert {schedule.keep_rate(40, 41, step, 7) for step in range(100)} == {1}
    assert schedule.keep_rate(3, 41, 5, 7) == drawn[305]
    assert [schedule.keep_rate(0, 41, step, 8) for step in range(100)] != drawn[:100]


def test_rates_drawn_are_those_of_every_version() -> None:
    """A run is gone on with by a later version."""
    schedule = KeepSchedule.parse("random")
    drawn = [round(20 * schedule.keep_rate(2, 9, step, 7)) for step in range(12)]
    assert drawn == [20, 20, 20, 20, 14, 20, 20, 20, 10, 20, 20, 20]


@pytest.mark.parametrize(
    ("text", "drops"),
    [
        *((text, True) for text in ("0.25", "0.25+2", "1:0.5", "0.5:1", "random", "random+1")),
        *((text, False) for text in (1, "1.0", "1:1", "1+2")),
    ],
)
def test_patches_are_dropped_where_any_rate_is_below_1(text: str | float, drops: bool) -> None:
    schedule = KeepSchedule.parse(text)
    assert schedule.drops == drops
    drawn = {schedule.keep_rate(epoch, 9, step, 0) for epoch in range(9) for step in range(9)}
    assert (min(drawn) < 1) == drops
    assert max(drawn) <= 1


def test_spaces_tell_nothing() -> None:
    assert KeepSchedule.parse(" 0.5 : 0.25 + 2 ") == KeepSchedule.parse("0.5:0.25+2")


def test_base_is_what_a_batch_must_fit_at() -> None:
    assert KeepSchedule.parse("0.1:0.5+3").base == 0.5
    assert KeepSchedule.parse("0.25+1").base == 0.25
    assert KeepSchedule.parse("random").base == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        *((text, "is not a keep rate; give") for text in ("", "a", "0.1:0.2:0.3", "0.2+", "0.2+x")),
        *(
            (text, r"is not in \(0, 1\]; give")
            for text in ("0", "1.5", "-0.1", "nan", "0.5:2", "0:1", "0.5:0")
        ),
    ],
)
def test_other_forms_are_refused(text: str, fault: str) -> None:
    """The message begins with what was given, so that a caller can put its option before it."""
    with pytest.raises(ValueError, match=f"^{text.replace('+', '.')} {fault}"):
        KeepSchedule.parse(text)
