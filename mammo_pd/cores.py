"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """The cores that this process may use: at least 1.

    Of those that the machine has, those of the process's affinity (taskset, SLURM), and no more
    than a container's quota of processor time, rounded up (``docker run --cpus``, Kubernetes'
    limits): with more threads than that, the kernel stops all of them for part of each period.
    ``LOKY_MAX_CPU_COUNT`` lowers it further.
    """
    # Not at the top: it is a third of what mammo-pd --help takes.
    from joblib import cpu_count

    return int(cpu_count())


def keep_threads_within_quota() -> None:
    """Have OpenMP start no more threads than the quota allows, unless the user has said how many.

    Torch and the linear algebra libraries ask OpenMP, which knows the affinity and no quota. They
    do so when they are imported: call this before.
    """
    cores = available_cores()
    if cores < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
