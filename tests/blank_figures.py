"""Reports without drawings, for tests of all else: drawing takes most of a report's time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mammo_pd.report import folder
from mammo_pd.report.figures import Figure

NAMES = ("roc", "pr", "scores", "calibration", "strata", "folds", "decision_curve")


@contextmanager
def figures_left_blank() -> Iterator[None]:
    """Within it every figure of a report is an empty one."""

    def blank(*_: object, **__: object) -> Figure:
        return Figure("roc", "<svg ></svg>", b"", "blank")

    with pytest.MonkeyPatch.context() as patch:
        figures = [Figure(name, "<svg ></svg>", b"", "blank") for name in NAMES]
        patch.setattr(folder, "figures_of", lambda _: figures)
        patch.setattr(folder, "overlaid_roc", blank)
        yield
