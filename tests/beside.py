"""Our plan in our plugin, step by step, for tests that let a seed document's own code train beside it."""

import numpy as np

from layerwise_lr import registry, verify
from layerwise_lr.layers import Tree, initial_weights, param_table
from layerwise_lr.plan import Plan


def batch_of(tree: Tree, step: int, size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """float32 [size, C, H, W] and int64 [size], the same for both sides."""
    rng = np.random.default_rng([2, step])
    return rng.standard_normal((size, *tree.input_shape)).astype(np.float32), rng.integers(0, tree.num_classes, size)


class Ours:
    """A run of `plan` from the tree's initial weights."""

    def __init__(self, name: str, mode: str, tree: Tree, plan: Plan, precision: str = "fp32") -> None:
        self.fw, self.tree, self.plan = registry.load(name)("cpu", mode, 0, precision, 1, False), tree, plan
        self.model = self.fw.make_model(tree)
        self.fw.set_weights(self.model, initial_weights(tree, 0))
        self.state = verify.make_state(self.fw, self.model, plan, 0)

    def step(self, step: int) -> list[float]:
        """One step; the lrs as the native optimizer holds them."""
        if step in {phase.start for phase in self.plan.phases()}:
            self.fw.set_active(self.state, self.plan.active(step))
        self.state.scheduler.apply(step)
        self.fw.train_step(self.state, *batch_of(self.tree, step))
        return self.state.scheduler.lrs()

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights now."""
        return self.fw.get_weights(self.model)


def largest_difference(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Of any number of any array, relative to the array's largest."""
    assert set(mine) == set(theirs)
    return max(float(np.abs(mine[n] - theirs[n]).max() / max(np.abs(theirs[n]).max(), 1e-12)) for n in theirs)


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Names of the parameters, not running statistics, that are not bit by bit what they were."""
    return {n for n in before if "running" not in n and not np.array_equal(before[n], after[n])}


def below(tree: Tree, *modules: str) -> set[str]:
    """Trainable parameters of these top modules."""
    return {row.name for row in param_table(tree).trainable if row.name.split(".")[0] in modules}
