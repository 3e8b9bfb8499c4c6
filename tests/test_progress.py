import re
import sys
import time

import pytest

from mammo_pd.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_minute_tells_count_rate_and_time_left(
    clock: list[float],
) -> None:
    said: list[str] = []
    with Progress("preprocess", 7200, said.append) as progress:
        for _ in range(1800):
            clock[0] += 0.125
            progress.update()
    assert said == [
        "preprocess: 480 of 7200 images, 8 images/s, 14 min left",
        "preprocess: 960 of 7200 images, 8 images/s, 13 min left",
        "preprocess: 1440 of 7200 images, 8 images/s, 12 min left",
    ]


def test_what_was_done_before_counts_for_no_rate_and_a_note_is_told_beside(
    clock: list[float],
) -> None:
    said: list[str] = []
    with Progress("epoch 2", 400, said.append, unit="step", done=100) as progress:
        for step in range(60):
            clock[0] += 2
            progress.note(f"loss {1 / (step + 1):.3f}")
            progress.update()
    assert said == [
        "epoch 2: 130 of 400 steps, 0.5 steps/s, 9 min left; loss 0.033",
        "epoch 2: 160 of 400 steps, 0.5 steps/s, 8 min left; loss 0.017",
    ]


def test_who_is_not_to_speak_shows_no_bar_either(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("epoch 1", 2, None) as progress:
        clock[0] += 300
        progress.update()
    assert capsys.readouterr() == ("", "")


def test_nothing_done_yet_and_more_done_than_there_is_are_no_errors(clock: list[float]) -> None:
    """Of several processes that share images unevenly one reckons for all."""
    said: list[str] = []
    with Progress("validation", 3, said.append) as progress:
        clock[0] += 100
        progress.update(0)
        progress.update(4)
    assert said == ["validation: 4 of 3 images, 0.04 images/s, 0 min left"]


def test_slow_images_and_hours_are_told_too(clock: list[float]) -> None:
    said: list[str] = []
    with Progress("levels", 100, said.append) as progress:
        clock[0] += 160
        progress.update()
    assert said == ["levels: 1 of 100 images, 0.00625 images/s, 4 h 24 min left"]


def test_a_short_run_says_nothing_and_a_terminal_has_a_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with Progress("preprocess", 2, said.append) as progress:
        progress.update()
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("preprocess", 2, said.append) as progress:
        clock[0] += 300
        progress.update()
    assert re.search("preprocess: .*1/2", capsys.readouterr().err)
    assert not said
