"""How many steps are timed, by a clock that only steps move."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from mammo_pd.perf import timer
from mammo_pd.perf.timer import Timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU's clock and the host's, which show the same time."""
    state = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timer.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(timer, "mark", lambda *, on_gpu: state.now)
    monkeypatch.setattr(timer, "elapsed", lambda start, end: end - start)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return state


def step_of(clock: SimpleNamespace, seconds: Callable[[float], float]) -> Callable[[], None]:
    def step() -> None:
        clock.now += seconds(clock.now)

    return step


@pytest.mark.parametrize("seconds", [0.001, 0.008, 0.2])
def test_what_a_step_takes_in_the_long_run_is_what_counts(
    clock: SimpleNamespace, seconds: float
) -> None:
    # Faster until it has been busy for a while, as a GPU that is cool is.
    busy = timer._WARM_UP_SECONDS + 1
    on_gpu = Timer(torch.device("cuda"), 20)
    measured = on_gpu.seconds_per_step(
        step_of(clock, lambda now: seconds if now > busy else 0.9 * seconds)
    )
    assert measured == pytest.approx(seconds)
    assert clock.now > timer._WARM_UP_SECONDS + timer._TIMED_SECONDS


def test_without_warming_up_only_the_steps_asked_for_are_timed(clock: SimpleNamespace) -> None:
    step = step_of(clock, lambda _: 0.001)
    Timer(torch.device("cuda"), 20).seconds_per_step(step, warm_up_seconds=0)
    assert clock.now == pytest.approx(0.001 * (timer._WARM_UP_STEPS + 20))


def test_a_cpu_is_given_the_steps_asked_for(clock: SimpleNamespace) -> None:
    step = step_of(clock, lambda _: 0.5)
    assert Timer(torch.device("cpu"), 3).seconds_per_step(step) == pytest.approx(0.5)
    assert clock.now == pytest.approx(0.5 * (timer._WARM_UP_STEPS + 3))
