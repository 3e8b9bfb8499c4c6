"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """The cores that this process may use: at least 1.

    Counts the machine's cores within the process's affinity (taskset, SLURM), limited to a
    container's CPU quota, rounded up (``docker run --cpus``, Kubernetes limits): with more threads
    than that, the kernel stops all of them for part of each period. ``LOKY_MAX_CPU_COUNT`` lowers
    the number further.
    """
    # Not at the top: importing it takes a third of the time of mammo-pd --help.
    from joblib import cpu_count

    return int(cpu_count())


def keep_threads_within_quota() -> None:
    """Limit OpenMP to as many threads as the quota allows, unless the user has set a number.

    Torch and the linear algebra libraries ask OpenMP for the number of threads when they are
    imported, and OpenMP respects the affinity but not the quota: call this before importing them.
    """
    cores = available_cores()
    if cores < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
