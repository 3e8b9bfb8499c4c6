"""What would be lost with the container that a command runs in."""

import os
import re
import sys
from pathlib import Path

# Set by docker/Dockerfile, and by nothing else.
CONTAINER_VARIABLE = "MAMMO_PD_CONTAINER"
_MOUNTS = Path("/proc/self/mountinfo")


def warn_unless_mounted(folder: Path) -> None:
    """Say so where a folder for results lies in a container of ours and is mounted from nowhere."""
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
        mountinfo: what Linux tells in ``/proc/self/mountinfo``. Devices would not do: a folder of
            the host can be on the one that the root is on.
    """
    points = {
        re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        for line in mountinfo.splitlines()
    }
    whole = folder.resolve()
    return any(str(part) in points - {"/"} for part in (whole, *whole.parents))
