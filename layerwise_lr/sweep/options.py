"""What a launcher is told: hydra/launcher=NAME, a schema each."""

import os
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from ..framework import advice
from ..planning import UserError
from . import family
from .pool import Limits

_UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Launch:
    """What every launcher is told.

    Args:
        n_jobs: jobs at a time; null: cores / framework.threads, on accelerators as many as fit on them; elsewhere than on this
            machine as many as there is room for.
        timeout: seconds a job may take; null: any.
        memory: what a job may take with all that it has started, as 4GiB or 500MiB; null: any. (Where memory is full the
            kernel ends the largest job.)
    """

    needs: ClassVar[str] = ""
    """The package, which is the extra's name too; "": none."""
    here: ClassVar[bool] = True
    """Whether the jobs run on this machine."""

    n_jobs: int | None = None
    timeout: float | None = None
    memory: str | float | None = None

    def __post_init__(self) -> None:
        self._at_least(n_jobs=1)
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"hydra.launcher.timeout={self.timeout} must be above 0 seconds")
        if self.limits().memory and not family.MEASURED:
            raise UserError(f"hydra.launcher.memory={self.memory}: is not measured on this system, only on Linux")

    def check(self, name: str) -> None:
        """Whether there is what the launcher needs.

        Args:
            name: of hydra/launcher.

        Raises:
            UserError: there is not; how to get it.
        """
        if self.needs and find_spec(self.needs) is None:
            raise UserError(f"hydra/launcher={name} needs {self.needs}, which is not installed: {advice(self.needs)}")

    def _at_least(self, **lowest: float) -> None:
        for key, low in lowest.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise UserError(f"hydra.launcher.{key}={value} must be at least {low}")

    def at_once(self, threads: int, devices: Sequence[str] = ()) -> int:
        """How many jobs run at a time on this machine, each with so many threads, on these accelerators."""
        if devices:
            fit = len(devices) * getattr(self, "jobs_per_device", 1)
            return min(self.n_jobs or fit, fit)
        return self.n_jobs or max((os.cpu_count() or 1) // threads, 1)

    def limits(self) -> Limits:
        """What each job may take.

        Raises:
            UserError: the memory is no size.
        """
        if self.memory is None:
            return Limits(self.timeout)
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?) ?([MG]i?B)?", str(self.memory), re.ASCII)
        memory = int(float(found[1]) * _UNITS[found[2] or "GiB"]) if found else 0
        if not memory:
            raise UserError(
                f"hydra.launcher.memory={self.memory} must be a size above 0: 4GiB, 500MiB, or a number of GiB"
            )
        return Limits(self.timeout, memory)


@dataclass(frozen=True)
class Here(Launch):
    """What a launcher on this machine is told beside that.

    Args:
        jobs_per_device: of them on one GPU or NPU.
    """

    jobs_per_device: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(jobs_per_device=1)


@dataclass(frozen=True)
class Options(Here):
    """hydra/launcher=jobs: our own pool.

    Args:
        fork: auto | never: whether jobs share one import of the framework, where the plugin allows it.
    """

    fork: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fork not in ("auto", "never"):
            raise UserError(f"hydra.launcher.fork={self.fork!r} must be 'auto' or 'never'")


@dataclass(frozen=True)
class Joblib(Here):
    """hydra/launcher=joblib: the workers of joblib's loky."""

    needs: ClassVar[str] = "joblib"


@dataclass(frozen=True)
class SubmititLocal(Here):
    """hydra/launcher=submitit_local: processes that submitit starts on this machine."""

    needs: ClassVar[str] = "submitit"


@dataclass(frozen=True)
class SubmititSlurm(Launch):
    """hydra/launcher=submitit_slurm: an array of Slurm jobs; n_jobs of it run at a time.

    Args:
        timeout_min: minutes after which Slurm ends a job, if the partition allows as many; timeout, in seconds, is our own.
        partition, account, qos, constraint: as sbatch takes them; null: the cluster's default.
        cpus_per_task: null: framework.threads.
        gpus_per_node: of each job, which is on one node; null: none.
        mem_gb: GB that Slurm keeps free for a job; null: the cluster's default.
        signal_delay_s: so many seconds before its end a job is told; it writes its resume point and is put into the queue again.
        max_num_timeout: how often.
        setup: lines of shell before the job: [module load python].
        additional_parameters: others of sbatch: {reservation: mine}.
    """

    needs: ClassVar[str] = "submitit"
    here: ClassVar[bool] = False

    timeout_min: int = 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 3
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(timeout_min=1, cpus_per_task=1, gpus_per_node=0, signal_delay_s=1, max_num_timeout=0)
        if self.mem_gb is not None and not self.mem_gb > 0:
            raise UserError(f"hydra.launcher.mem_gb={self.mem_gb} must be above 0")
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise UserError(
                f"hydra.launcher.signal_delay_s={self.signal_delay_s} must be less than the {self.timeout_min} minutes of "
                "hydra.launcher.timeout_min"
            )

    def check(self, name: str) -> None:
        """Likewise, and Slurm's own programs."""
        super().check(name)
        for program in ("sbatch", "srun"):
            if shutil.which(program) is None:
                raise UserError(
                    f"hydra/launcher={name}: there is no {program} here; begin the sweep on a node that can submit to Slurm"
                )


@dataclass(frozen=True)
class Ray(Launch):
    """hydra/launcher=ray: a task of a Ray cluster for each job.

    Args:
        address: of the cluster, as ray.init takes it; auto: the one that this machine is part of; null: RAY_ADDRESS, else one
            that is made of this machine alone.
        num_cpus: that a job takes of its node's; null: framework.threads.
        num_gpus: likewise; above 0 the job sees these alone.
        resources: others that a job takes: {tpu: 1}.
    """

    needs: ClassVar[str] = "ray"
    here: ClassVar[bool] = False

    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float = 0
    resources: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(num_cpus=0, num_gpus=0)
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise UserError(f"hydra.launcher.num_gpus={self.num_gpus}: above 1 it is a whole number")

    def check(self, name: str) -> None:
        """Likewise, and that somebody listens where the cluster is said to be: Ray itself would try for minutes."""
        super().check(name)
        host, colon, port = (self.address or "").rpartition(":")
        if colon and port.isdecimal():
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except OSError as error:
                raise UserError(
                    f"hydra.launcher.address={self.address}: {error.strerror or error}; is the cluster up?"
                ) from error


LAUNCHERS: dict[str, type[Launch]] = {
    "jobs": Options,
    "joblib": Joblib,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
    "ray": Ray,
}
"""By hydra/launcher's name."""
