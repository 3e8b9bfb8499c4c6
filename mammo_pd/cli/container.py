"""Warn about results that would be lost together with the container."""

import os
import re
import sys
from pathlib import Path

# Set by docker/Dockerfile, and by nothing else.
CONTAINER_VARIABLE = "MAMMO_PD_CONTAINER"
_MOUNTS = Path("/proc/self/mountinfo")


def warn_unless_mounted(folder: Path) -> None:
    """Warn if a results folder is inside our container and not mounted from the host."""
    if CONTAINER_VARIABLE in os.environ and not is_mounted(folder, _MOUNTS.read_text()):
        print(
            f"warning: no host folder is mounted at {folder}: anything written there is lost when "
            f"the container is removed. Mount one: --volume FOLDER:{folder}",
            file=sys.stderr,
        )


def is_mounted(folder: Path, mountinfo: str) -> bool:
    """Whether a folder lies on anything but the root file system.

    Args:
        folder: need not exist.
        mountinfo: the content of ``/proc/self/mountinfo``. Comparing devices would not work: a host
            folder can be on the same device as the root.
    """
    points = {
        re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        for line in mountinfo.splitlines()
    }
    whole = folder.resolve()
    return any(str(part) in points - {"/"} for part in (whole, *whole.parents))
