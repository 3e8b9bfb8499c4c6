"""Imported once by the fork server, so that workers share what it loads instead of loading it.

Importing this module changes the process: one thread for each library, MONAI without its optional
dependencies, nothing loaded so far is garbage collected again, and a worker that starts after its
parent has ended is no traceback.
"""

import atexit
import gc
import os
import sys
from types import TracebackType

# There is a worker for each core, so more threads would only wait for one another; and a process
# that forks must have none. Libraries read these when they are loaded, hence before the imports.
for _variable in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
):
    os.environ[_variable] = "1"

# Looked for before it is hidden from MONAI.
from mammo_pd.imaging import decode  # noqa: E402, F401

# MONAI imports these if it can, and no transform of ours needs them: without them it loads in half
# the time and two thirds of the memory, without the thread that pyarrow (of pandas) starts, and
# without nvImageCodec's hold on the GPU, which no process that is forked afterwards survives.
_optional = [
    name
    for name in ("matplotlib", "mlflow", "nvidia.nvimgcodec", "pandas", "sklearn", "torchvision")
    if name not in sys.modules
]
for _name in _optional:
    sys.modules[_name] = None  # type: ignore[assignment]  # Python's own way to fail an import

from mammo_pd.ingest import process, transforms  # noqa: E402, F401

# The main module of whoever called may need them; workers import it.
for _name in _optional:
    del sys.modules[_name]

# The collector marks each object that it visits, and a page that is written to is no longer shared
# between the processes.
gc.collect()
gc.freeze()
# Bindings that count their objects at exit would report all that are frozen as leaked.
atexit.register(gc.unfreeze)


def _pass_over_late_start(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error, but not that a parent took pipes and semaphores with it when it ended.

    Errors of the work itself do not come here: the pool hands them to the parent, which also
    notices a worker that did not start.
    """
    if not issubclass(kind, FileNotFoundError | EOFError | ConnectionError | BrokenPipeError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _pass_over_late_start
