import re
import sys
import time

import pytest

from mammo_pd.ingest.progress import Progress


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
