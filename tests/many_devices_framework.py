"""The reference framework on a machine with three accelerators, which the CPU plays: a device that two jobs have at once
is in the time that their folders tell."""

import time
from typing import Any

from layerwise_lr.plugins.reference_plugin.plugin import ReferenceFramework


class ManyDevices(ReferenceFramework):
    """Its devices, and steps that take time enough for jobs to overlap."""

    @classmethod
    def devices(cls) -> list[str]:
        return ["npu:0", "npu:1", "npu:2", "cpu"]

    def train_step(self, *given: Any) -> Any:
        time.sleep(0.03)
        return super().train_step(*given)


class ManySpawned(ManyDevices):
    """Where every job is an interpreter of its own."""

    fork_safe = False
