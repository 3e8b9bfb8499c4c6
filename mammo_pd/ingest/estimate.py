"""How long ``preprocess`` takes for a folder and how large its store is, from a few of its files.

Some files of each transfer syntax are processed as ``preprocess`` does it, as many at a time as it
would, and what they took is scaled by pixels.
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.ingest.process import Job, process_file
from mammo_pd.ingest.survey import Sample
from mammo_pd.ingest.workers import run_in_processes
from mammo_pd.terms import Status

# Files that are timed: some seconds of work.
_TIMED = 8


@dataclass(frozen=True)
class Estimate:
    """What ``preprocess`` would take.

    Attributes:
        seconds: of all workers together, each busy.
        stored_bytes: of all pyramid levels.
        workers: processes.
        timed: files that were processed.
        of_files: of how many.
        seconds_per_megapixel: of one worker, by transfer syntax.
        bytes_per_pixel: stored, for each pixel of a file.
    """

    seconds: float
    stored_bytes: int
    workers: int
    timed: int
    of_files: int
    seconds_per_megapixel: Mapping[str, float]
    bytes_per_pixel: float


@dataclass(frozen=True)
class _Timing:
    pixels: int
    seconds: float
    stored_bytes: int


def estimate(
    samples: Sequence[Sample],
    pixels: Mapping[str, int],
    files: int,
    workers: int,
    *,
    repeated: int = 0,
) -> Estimate | None:
    """Process a few files, and scale what they take to all of them.

    Args:
        samples: by transfer syntax, the most frequent first.
        pixels: of all files that will be processed, by transfer syntax.
        files: how many those are.
        workers: processes that ``preprocess`` would use.
        repeated: files of these that are copies, which are decoded and not stored.

    Returns:
        The estimate; None if none of the files could be processed.
    """
    chosen = _choose(samples)
    if not chosen:
        return None
    with tempfile.TemporaryDirectory(prefix="mammo-pd-") as folder:
        jobs = [
            Job(
                sample.path,
                (sample.path.stat().st_size, 0),
                sample.named,
                ImagingSettings(),
                Path(folder),
                False,
                sample.photometric_interpretation,
            )
            for sample in chosen
        ]
        # The first file of each worker also loads what the others find loaded.
        warm = [jobs[0]] * workers
        done = list(run_in_processes([*warm, *jobs], _time_file, workers))[len(warm) :]
    timings: dict[str, list[_Timing]] = defaultdict(list)
    for sample, (_, timed) in zip(chosen, done, strict=True):
        if timed is not None:
            timings[sample.syntax].append(_Timing(sample.pixels, *timed))
    flat = [timing for of_syntax in timings.values() for timing in of_syntax]
    if not flat or not any(timing.pixels for timing in flat):
        return None
    rates = {syntax: _seconds_per_pixel(of_syntax) for syntax, of_syntax in timings.items()}
    overall = _seconds_per_pixel(flat)
    work = sum(count * rates.get(syntax, overall) for syntax, count in pixels.items())
    stored = sum(timing.stored_bytes for timing in flat) / sum(timing.pixels for timing in flat)
    return Estimate(
        seconds=work / workers,
        stored_bytes=round(stored * sum(pixels.values()) * (files - repeated) / max(1, files)),
        workers=workers,
        timed=len(flat),
        of_files=files,
        seconds_per_megapixel={syntax: 1e6 * rate for syntax, rate in rates.items()},
        bytes_per_pixel=stored,
    )


def _choose(samples: Sequence[Sample]) -> list[Sample]:
    """In turn one of each transfer syntax, until there are enough."""
    left: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        left[sample.syntax].append(sample)
    chosen: list[Sample] = []
    while len(chosen) < _TIMED and any(left.values()):
        chosen += [of_syntax.pop(0) for of_syntax in left.values() if of_syntax]
    return chosen[: max(_TIMED, len(left))]


def _seconds_per_pixel(timings: Sequence[_Timing]) -> float:
    return sum(timing.seconds for timing in timings) / sum(timing.pixels for timing in timings)


def _time_file(job: Job) -> tuple[float, int] | None:
    """Seconds and stored bytes of one file; None if it cannot be used."""
    started = monotonic()
    outcomes = process_file(job)
    seconds = monotonic() - started
    size = 0
    for outcome in outcomes:
        if outcome.columns["status"] != Status.OK or outcome.pyramid is None:
            return None
        size += outcome.pyramid.stat().st_size
        outcome.pyramid.unlink()
    return seconds, size
