import time

import pytest
import torch

from mammo_pd.data.loader import ReadRate
from mammo_pd.training.data_supply import StepClock, describe_shortage

MB = 10**6


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        # 1000 images of 2 MB in 4 s; a step of 100 images takes 0.1 s and more.
        (
            0.1,
            "waited 75 % of the time for data: a first reading, in which each image is checked, "
            "gives 500 MB/s (250 images/s), and the steps of a process would take 2000 MB/s (1000 "
            "images/s). If later epochs wait as well, a faster disk would fix this, ",
        ),
        (0.24, "waited 40 % of the time"),
        (0.36, "waited 10 % of the time"),
        (0.39, None),
        (1.0, None),
        (None, None),
    ],
)
def test_it_is_said_by_how_much_the_disk_is_short(seconds: float | None, said: str | None) -> None:
    sentence = describe_shortage(ReadRate(1000, 2000 * MB, 4.0), seconds, 100, 50_000)
    assert sentence is None if said is None else sentence and sentence.startswith(said)
    assert sentence is None or sentence.endswith("memory for the 100 GB that an epoch reads")
    assert describe_shortage(ReadRate(), seconds, 100, 50_000) is None


def test_a_step_is_timed_without_what_is_waited_for_between_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = StepClock(torch.device("cpu"))
    assert clock.seconds() is None
    # Begin and end of three steps.
    times = iter([0.0, 1.0, 5.0, 7.0, 20.0, 21.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    for _ in range(3):
        with clock.timing():
            pass
    assert clock.seconds() == 1.5
