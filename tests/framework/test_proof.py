import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from layerwise_lr.plugins.torch_plugin.plugin import TorchFramework

from layerwise_lr.framework import GroupScheduler, StepResult, UserError, in_plan_order, proof
from layerwise_lr.models.layers import initial_weights, param_table
from layerwise_lr.models.trees import make_tree
from layerwise_lr.planning import Clip
from layerwise_lr.planning.groups import GroupingSpec, GroupSpec
from layerwise_lr.planning.plan import FreezeSpec, OptimizerSpec, make_plan
from layerwise_lr.planning.schedules import ScheduleSpec
from layerwise_lr.run import page, resolve
from layerwise_lr.run.folder import CONFIG, RunFolder, read_metrics
from layerwise_lr.run.reading import from_data

TREES = {
    "lenet": make_tree("lenet", 10, 1, 12),
    "vit": make_tree("vit_tiny", 10, 1, 16, patch_size=8, depth=2, embed_dim=24, num_heads=2),
    "resnet": make_tree("resnet18", 10, 3, 32),
}
OPTIMIZERS = {
    "sgd": OptimizerSpec("sgd", lr=0.1),
    "momentum": OptimizerSpec("momentum", lr=0.1, momentum=0.9),
    "nesterov": OptimizerSpec("momentum", lr=0.1, momentum=0.7, nesterov=True),
    "adam": OptimizerSpec("adam", lr=1e-3),
    "adamw": OptimizerSpec("adamw", lr=1e-3, betas=[0.8, 0.95], eps=1e-6),
    "nadam": OptimizerSpec("nadam", lr=1e-3),
    "rmsprop": OptimizerSpec("rmsprop", lr=1e-3, momentum=0.0),
    "rmsprop, momentum": OptimizerSpec("rmsprop", lr=1e-3, alpha=0.9, momentum=0.7),
    "lion": OptimizerSpec("lion", lr=1e-4, betas=[0.8, 0.95]),
    "muon": OptimizerSpec("muon", lr=1e-3, nesterov=True),
    "layer_adaptive": OptimizerSpec("layer_adaptive", lr=0.1),
    "layer_adaptive, large eps": OptimizerSpec("layer_adaptive", lr=0.1, betas=[0.8, 0.95], eps=1e-3),
}
SCHEDULES = {
    "constant": (ScheduleSpec(), FreezeSpec()),
    "warm-up": (ScheduleSpec("cosine", warmup=5, warmup_start=0.1, floor=0.01), FreezeSpec()),
    "cosine": (ScheduleSpec("cosine"), FreezeSpec()),
    "freezing": (ScheduleSpec("cosine", warmup=2), FreezeSpec("progressive", every=2)),
    "late": (ScheduleSpec("linear"), FreezeSpec("after", at=9)),
}
STEMS = {"lenet": "conv1", "vit": "patch_embed", "resnet": "layer1"}


def plan_of(model, optimizer, schedule="cosine", weight_decay=0.05, steps=40, **grouping):
    spec, freeze = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    freeze = replace(freeze, match=[STEMS[model]] if freeze.strategy == "after" else [])
    optimizers = {"default": replace(OPTIMIZERS[optimizer], weight_decay=weight_decay), "other": OPTIMIZERS["momentum"]}
    grouping = GroupingSpec(**{"layer_decay": 0.6, **grouping})
    return make_plan(param_table(TREES[model]), grouping, optimizers, {"default": spec}, freeze, steps)[1]


def checked(framework, model, plan, weights=None):
    tree = TREES[model]
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, *tree.input_shape)).astype(np.float32), rng.integers(0, 10, 8)
    weights = weights or initial_weights(tree, 1)
    native = framework.make_model(tree)
    return proof.check(framework, native, plan, weights, batch, 0), framework.get_weights(native), weights


def honest():
    return TorchFramework("cpu")


def worst(records):
    return max(record["max_relative_error"] for record in records)


def at_fault(records):
    """Rows that are off, of all lines."""
    return [row for record in records for row in record["groups"] if row["relative_error"] > proof.TOLERANCE]


# --- an honest framework passes


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("model", ["lenet", "vit"])
def test_torch_does_what_the_plan_says(model, optimizer, weight_decay, schedule):
    plan = plan_of(model, optimizer, schedule, weight_decay)
    records, after, before = checked(honest(), model, plan)
    assert worst(records) <= proof.TOLERANCE
    assert all(np.array_equal(after[n], before[n]) for n in before), "the probe must leave the weights as they were"
    table = plan.table()
    for record in records:
        assert (record["when"], record["tolerance"]) == ("start", proof.TOLERANCE)
        rows = record["groups"]
        assert [r["group"] for r in rows] == [g.name for g in plan.groups]
        assert [r["planned"] for r in rows] == pytest.approx(list(table[record["step"]]), rel=1e-12)
        for row in rows:
            assert row["measured"] == pytest.approx(row["planned"], rel=1e-3 + row["resolution"])
    probes = proof.probe_steps(plan)
    assert {record["step"] for record in records if record["resolution"] <= 0.1} == set(probes)
    fine = {r["group"] for record in records for r in record["groups"] if r["measured"] and r["resolution"] <= 1e-4}
    assert fine == {g.name for g, lrs in zip(plan.groups, table[probes].T, strict=True) if lrs.any()}


@pytest.mark.parametrize(("optimizer", "schedule"), [("momentum", "warm-up"), ("adamw", "freezing")])
def test_torch_on_a_resnet_with_batchnorm(optimizer, schedule):
    records, after, before = checked(honest(), "resnet", plan_of("resnet", optimizer, schedule))
    assert worst(records) <= proof.TOLERANCE
    still = {r["group"] for record in records for r in record["groups"] if r["group"] == "batchnorm statistics"}
    assert bool(still) == (schedule == "freezing")
    assert all(np.array_equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_a_tiny_lr_is_measured_too(scale):
    plan = plan_of("lenet", "adamw", layer_decay=1.0, groups={"stem": GroupSpec(match=["conv1.*"], lr_scale=scale)})
    records, _, _ = checked(honest(), "lenet", plan)
    assert records[0]["base_lr_times"] == 1
    for record in records[1:]:
        assert record["base_lr_times"] > 1 and record["resolution"] <= 1e-4
        assert all(row["measured"] for row in record["groups"])


def test_two_optimizers_and_gradient_centralization():
    groups = {"stem": GroupSpec(match=["conv*"], optimizer="other", grad_centralization=True)}
    checked(honest(), "lenet", plan_of("lenet", "adamw", groups=groups))


def test_a_run_in_which_nothing_trains_at_first():
    plan = plan_of("lenet", "adamw", strategy="flat", groups={"all": GroupSpec(match=["*"], start=30)})
    records, _, _ = checked(honest(), "lenet", plan)
    assert all(record["step"] >= 30 and all(row["planned"] for row in record["groups"]) for record in records)


@pytest.mark.parametrize(
    ("schedule", "steps"), [*((name, 40) for name in sorted(SCHEDULES)), ("cosine", 1), ("cosine", 2), ("freezing", 9)]
)
def test_two_probe_steps_show_most_of_the_groups_and_the_greatest_difference(schedule, steps):
    plan = plan_of("lenet", "adamw", schedule, steps=steps)
    table, probes = plan.table(), proof.probe_steps(plan)
    assert len(probes) == len(set(probes)) <= 2
    assert all(0 <= step < plan.total_steps for step in probes)
    counts = (table > 0).sum(axis=1)
    assert counts[probes].max() == counts.max()
    assert (len(probes) == 1) == (schedule == "constant" or steps == 1)
    if schedule == "freezing":
        assert counts[probes].min() == counts[counts > 0].min()
    if schedule == "warm-up":
        assert table[probes].max() == table.max() and table[probes, -1].min() < 0.11 * table[:, -1].max()


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("times", [1.0, 1.01])
def test_squares_that_float32_cannot_hold_are_summed_all_the_same(size, times):
    plan = plan_of("lenet", "sgd", "constant", weight_decay=0.0, strategy="flat")
    rng = np.random.default_rng(0)
    before = {
        n: (size * rng.normal(size=a.shape)).astype(np.float32) for n, a in initial_weights(TREES["lenet"], 1).items()
    }
    gradients = {n: (size * rng.normal(size=a.shape)).astype(np.float32) for n, a in before.items()}
    after = {n: (w - times * 0.1 * gradients[n].astype(np.float64)).astype(np.float32) for n, w in before.items()}
    for row in proof.measure(plan, 3, before, after, gradients, {}):
        assert row.measured == pytest.approx(0.1 * times, rel=1e-5)
        assert row.relative_error == pytest.approx(times - 1, rel=1e-2, abs=1e-5)


def test_what_float32_rounds_below_its_normal_numbers_is_no_fault():
    """Zero weights, movements of 1e-43: a few of the least numbers there are."""
    plan = plan_of("lenet", "sgd", "constant", weight_decay=0.0, strategy="flat")
    gradients = {n: np.full(a.shape, 3.3e-42, np.float32) for n, a in initial_weights(TREES["lenet"], 1).items()}
    before = {n: np.zeros_like(g) for n, g in gradients.items()}
    after = {n: (-0.1 * g.astype(np.float64)).astype(np.float32) for n, g in gradients.items()}
    for row in proof.measure(plan, 3, before, after, gradients, {}):
        assert row.relative_error <= proof.TOLERANCE
        assert row.resolution > 1e-3


class Counts(TorchFramework):
    """Tells how many native optimizers and steps it was asked for."""

    def __init__(self, device):
        super().__init__(device)
        self.made, self.steps = [], 0

    def make_optimizer(self, model, groups, plan):
        assert not any(ref() for ref in self.made), "two optimizers' state at once"
        native = super().make_optimizer(model, groups, plan)
        self.made += map(weakref.ref, native)
        return native

    def train_step(self, state, x, y, step):
        self.steps += 1
        return super().train_step(state, x, y, step)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_rehearsal_is_three_steps_and_leaves_nothing(schedule):
    framework = Counts("cpu")
    records, _, _ = checked(framework, "lenet", plan_of("lenet", "adamw", schedule))
    assert framework.steps == len(records) <= 3
    assert len(framework.made) == 1 and not any(ref() for ref in framework.made)


@pytest.mark.parametrize(
    ("schedule", "scale", "steps"),
    [
        ("constant", 1.0, 1),
        ("constant", 1e-2, 2),
        ("cosine", 1.0, 2),
        ("cosine", 1e-6, 3),
        ("freezing", 1.0, 2),
        ("freezing", 1e-2, 3),
    ],
)
def test_a_third_step_is_taken_for_groups_that_the_first_hides(schedule, scale, steps):
    """Of the constant schedule it is the second; under freezing the other step does not show the stem."""
    groups = {"stem": GroupSpec(match=["conv1.*"], lr_scale=scale), "rest": GroupSpec(match=["*"])}
    plan = plan_of("lenet", "adamw", schedule, strategy="flat", groups=groups)
    records, _, _ = checked(honest(), "lenet", plan)
    assert len(records) == steps
    assert records[-1]["resolution"] <= 1e-4


def run_folder(path, **changes):
    config = resolve(
        from_data(
            {
                "data": {"name": "digits", "image_size": 12, "train_size": 60, "val_size": 30, "test_size": 30},
                "batch_size": 20,
                "steps": 6,
                "freeze": {"strategy": "head_first", "every": 2},
                "eval_every": 2,
                **changes,
            }
        )
    )
    folder = RunFolder.claim(path)
    folder.write_text(CONFIG, config.to_yaml())
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_run_with_the_proof_is_the_run_without_it(tmp_path, optimizer):
    records = []
    for proved in (True, False):
        folder = run_folder(
            tmp_path / str(proved), verify={"start": proved, "training": proved}, optimizer={"name": optimizer}
        )
        page.run(folder.path, say=lambda line: None)
        assert (folder.path / "lr_check.jsonl").exists() is proved
        records.append(read_metrics(folder.path / "metrics.jsonl"))
    assert records[0] == records[1]
    assert len(records[0]) == 6 + 3


# --- saboteurs: each has one fault, each must be caught and its group named


class Faulty(GroupScheduler):
    def write(self, lrs):
        for group, lr in zip(self._groups, lrs, strict=True):
            group["lr"] = lr


class IgnoresScale(Faulty):
    def apply(self, index):
        full = replace(self._plan, groups=tuple(replace(g, lr_scale=1.0) for g in self._plan.groups))
        self.write(full.lrs(index))


class ScalesTwice(Faulty):
    def apply(self, index):
        self.write([lr * g.lr_scale for lr, g in zip(self._plan.lrs(index), self._plan.groups, strict=True)])


class OneStepLate(Faulty):
    def apply(self, index):
        self.write(self._plan.lrs(max(index - 1, 0)))


class NeverApplied(Faulty):
    def apply(self, index):
        pass


class SwapsTwo(Faulty):
    def apply(self, index):
        lrs = self._plan.lrs(index)
        lrs[0], lrs[-1] = lrs[-1], lrs[0]
        self.write(lrs)


class OneIsNan(Faulty):
    def apply(self, index):
        lrs = self._plan.lrs(index)
        self.write([*lrs[:2], float("nan"), *lrs[3:]])


class OneIsOff(Faulty):
    def apply(self, index):
        lrs = self._plan.lrs(index)
        self.write([*lrs[:2], lrs[2] * 1.002, *lrs[3:]])


def with_scheduler(kind):
    class Saboteur(TorchFramework):
        def make_scheduler(self, optimizer, plan, start):
            return kind(in_plan_order(optimizer, plan), plan)

    return Saboteur


class MisplacesOneBias(TorchFramework):
    def make_groups(self, model, plan):
        groups = super().make_groups(model, plan)
        home = next(g for g in groups if "fc1.bias" in dict(g["params"]))
        away = next(g for g in groups if g["name"].startswith("layer_4") and g["weight_decay"] == home["weight_decay"])
        bias = next(p for p in home["params"] if p[0] == "fc1.bias")
        home["params"] = [p for p in home["params"] if p[0] != "fc1.bias"]
        away["params"] = [*away["params"], bias]
        return groups


class DecaysEverything(TorchFramework):
    def make_groups(self, model, plan):
        return [{**g, "weight_decay": 0.1} for g in super().make_groups(model, plan)]


class DecaysNothing(TorchFramework):
    def make_groups(self, model, plan):
        return [{**g, "weight_decay": 0.0} for g in super().make_groups(model, plan)]


class IgnoresWindows(Faulty):
    def apply(self, index):
        self.write(replace(self._plan, groups=tuple(replace(g, active=(0, 99)) for g in self._plan.groups)).lrs(index))


def all_train(step):
    return replace(step, active=(True,) * len(step.active))


class FreezesByLrAlone(TorchFramework):
    def train_step(self, state, x, y, step):
        return super().train_step(state, x, y, all_train(step))


class MovesTheFrozen(with_scheduler(IgnoresWindows), FreezesByLrAlone):
    pass


def test_freezing_by_an_lr_of_zero_alone_moves_nothing_and_is_seen_in_the_optimizer_s_state_only():
    """One step at lr 0 moves nothing: the lr is right. test_torch_plugin checks that frozen state stays."""
    checked(FreezesByLrAlone("cpu"), "lenet", plan_of("lenet", "adamw", "freezing"))


class MovesTheFrozenByAHair(TorchFramework):
    def train_step(self, state, x, y, step):
        result = super().train_step(state, x, y, step)
        for name, p in state.model.arrays().items():
            if "conv1" in name and p.grad is None:
                p.data.flatten()[0] = np.nextafter(p.data.flatten()[0].item(), np.float32(9), dtype=np.float32).item()
        return result


class IgnoresTheDefaultLr(TorchFramework):
    """Every group at torch's own default."""

    def make_scheduler(self, optimizer, plan, start):
        return super().make_scheduler(optimizer, replace(plan, base_lr=1e-3), start)


class DecaysWithoutLr(TorchFramework):
    """AdamW as some code bases have it: the decay is not multiplied by the lr."""

    def train_step(self, state, x, y, step):
        for group, on in zip(state.groups, step.active, strict=True):
            for p in group["params"] if on else ():
                p.data.mul_(1 - group["weight_decay"]).div_(1 - group["lr"] * group["weight_decay"])
        return super().train_step(state, x, y, step)


class MovesSideways(TorchFramework):
    """The step along the gradient is right; something else moves the weights at right angles to it."""

    def train_step(self, state, x, y, step):
        weight = state.model.arrays()["fc2.weight"]
        before, result = weight.detach().clone(), super().train_step(state, x, y, step)
        moved = (weight.data - before).flatten()
        noise = moved.roll(1)
        noise -= moved * (noise @ moved) / (moved @ moved)
        weight.data += 0.3 * noise.view_as(weight)
        return result


class CentralizesNothing(TorchFramework):
    def make_groups(self, model, plan):
        return [{**g, "grad_centralization": False} for g in super().make_groups(model, plan)]


class CentralizesEverything(TorchFramework):
    def make_groups(self, model, plan):
        return [{**g, "grad_centralization": True} for g in super().make_groups(model, plan)]


class ForgetsNesterov(TorchFramework):
    def make_optimizer(self, model, groups, plan):
        return super().make_optimizer(
            model, groups, replace(plan, optimizers={n: replace(o, nesterov=False) for n, o in plan.optimizers.items()})
        )


class NeverClips(TorchFramework):
    def train_step(self, state, x, y, step):
        return super().train_step(state, x, y, replace(step, clip=Clip()))


class NeverClipsAtStep0(TorchFramework):
    def train_step(self, state, x, y, step):
        return super().train_step(state, x, y, step if step.index else replace(step, clip=Clip()))


class OneOptimizerForAll(TorchFramework):
    def make_optimizer(self, model, groups, plan):
        same = tuple(replace(g, optimizer="default") for g in plan.groups)
        return super().make_optimizer(model, groups, replace(plan, groups=same))


ALL_BUT_HEAD = {"layer_0", "layer_1", "layer_2", "layer_3"}
EVERY = {*ALL_BUT_HEAD, "layer_4"}
SABOTEURS = {  # saboteur: (optimizer, schedule, other options, groups that must be named; None: at least one)
    "ignores lr_scale": (with_scheduler(IgnoresScale), "adamw", "cosine", {}, ALL_BUT_HEAD),
    "ignores lr_scale, sgd": (with_scheduler(IgnoresScale), "sgd", "constant", {}, ALL_BUT_HEAD),
    "scales twice": (with_scheduler(ScalesTwice), "adamw", "cosine", {}, ALL_BUT_HEAD),
    "one step late": (with_scheduler(OneStepLate), "momentum", "cosine", {}, EVERY),
    "one step late in a warm-up": (with_scheduler(OneStepLate), "adam", "warm-up", {}, EVERY),
    "never applied": (with_scheduler(NeverApplied), "adamw", "warm-up", {}, EVERY),
    "swaps two groups": (with_scheduler(SwapsTwo), "adamw", "constant", {}, {"layer_0", "layer_4"}),
    "one lr is off by 0.2 %": (with_scheduler(OneIsOff), "adamw", "cosine", {}, {"layer_1"}),
    "one lr is NaN": (with_scheduler(OneIsNan), "sgd", "cosine", {}, {"layer_1"}),
    "one bias misplaced": (MisplacesOneBias, "adamw", "cosine", {"no_weight_decay": False}, {"layer_2"}),
    "decays everything": (DecaysEverything, "adamw", "cosine", {"weight_decay": 0.1}, EVERY),
    "decays everything, L2": (DecaysEverything, "sgd", "cosine", {"weight_decay": 0.1}, EVERY),
    "decays nothing": (DecaysNothing, "adamw", "cosine", {"weight_decay": 0.1}, EVERY),
    "decays nothing, L2": (DecaysNothing, "momentum", "cosine", {"weight_decay": 0.1}, EVERY),
    "decays nothing, layer_adaptive": (DecaysNothing, "layer_adaptive", "cosine", {"weight_decay": 0.1}, EVERY),
    "moves the frozen": (MovesTheFrozen, "adamw", "freezing", {"weight_decay": 0.1}, ALL_BUT_HEAD),
    "moves the frozen by a hair": (MovesTheFrozenByAHair, "adamw", "late", {}, {"layer_0"}),
    "ignores the default lr": (IgnoresTheDefaultLr, "sgd", "cosine", {}, EVERY),
    "decays without lr": (DecaysWithoutLr, "adamw", "cosine", {"weight_decay": 0.1}, EVERY),
    "moves sideways": (MovesSideways, "adamw", "cosine", {}, {"layer_3"}),
    "centralizes nothing": (
        CentralizesNothing,
        "sgd",
        "cosine",
        {"groups": {"c": GroupSpec(match=["fc2.*"], grad_centralization=True)}},
        {"c/layer_3"},
    ),
    "centralizes everything": (CentralizesEverything, "sgd", "cosine", {}, EVERY),
    "forgets Nesterov": (ForgetsNesterov, "nesterov", "cosine", {}, EVERY),
    "one optimizer for all": (
        OneOptimizerForAll,
        "adam",
        "cosine",
        {"groups": {"c": GroupSpec(match=["fc2.*"], optimizer="other")}},
        {"c/layer_3"},
    ),
}


@pytest.mark.parametrize("name", sorted(SABOTEURS))
def test_a_saboteur_is_caught_and_its_groups_are_named(name):
    saboteur, optimizer, schedule, options, culprits = SABOTEURS[name]
    plan = plan_of("lenet", optimizer, schedule, **options)
    with pytest.raises(proof.LrMismatch) as caught:
        checked(saboteur("cpu"), "lenet", plan)
    records = caught.value.records
    assert {row["group"].removesuffix("_no_decay") for row in at_fault(records)} == culprits
    rows = [row for record in records for row in record["groups"]]
    first = max(records[-1]["groups"], key=lambda r: r["relative_error"])
    assert first["group"] in str(caught.value)
    assert first["worst"] in str(caught.value)
    assert all(np.isfinite(r["relative_error"]) for r in rows)
    assert all(r["measured"] is None or np.isfinite(r["measured"]) for r in rows)


@pytest.mark.parametrize("clip", [Clip(norm=1e-2), Clip(value=1e-3)])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("saboteur", [NeverClips, NeverClipsAtStep0])
def test_who_does_not_clip_is_caught(saboteur, optimizer, clip):
    plan = replace(plan_of("lenet", optimizer, "constant"), clip=clip)
    assert worst(checked(honest(), "lenet", plan)[0]) <= proof.TOLERANCE
    with pytest.raises(proof.LrMismatch) as caught:
        checked(saboteur("cpu"), "lenet", plan)
    assert {row["group"].removesuffix("_no_decay") for row in at_fault(caught.value.records)} == EVERY


def test_the_misplaced_bias_is_named_itself():
    with pytest.raises(proof.LrMismatch) as caught:
        checked(MisplacesOneBias("cpu"), "lenet", plan_of("lenet", "adamw", no_weight_decay=False))
    assert {row["worst"] for row in at_fault(caught.value.records)} == {"fc1.bias"}
    assert proof.table(caught.value.records)[0][5] == "fc1.bias"


class ForgetsToClearGradients(TorchFramework):
    def train_step(self, state, x, y, step):
        loss = torch.nn.functional.cross_entropy(state.model(self._tensor(x)), self._tensor(y))
        loss.backward()
        gradients = {name: p.grad.numpy().copy() for name, p in state.model.arrays().items()}
        for optimizer in state.optimizer:
            optimizer.step()
        return StepResult(loss.detach(), gradients)


def test_gradients_that_pile_up_are_no_fault_of_the_lr():
    """The proof takes the gradient from the framework: a wrong gradient, well applied, is a right lr. What
    such a framework gets wrong is seen by test_torch_plugin's comparison with torch used by hand."""
    checked(ForgetsToClearGradients("cpu"), "lenet", plan_of("lenet", "sgd", "constant"))


@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_gradients_that_are_not_finite_are_no_fault_of_the_lr(value):
    weights = initial_weights(TREES["lenet"], 1)
    weights["fc1.weight"][:] = value
    with pytest.raises(
        UserError,
        match=r"(the loss|the gradient of [\w.]+) is (nan|inf) at step 0, before anything was trained.*fc1\.weight",
    ):
        checked(honest(), "lenet", plan_of("lenet", "sgd"), weights)


class MovesByNan(TorchFramework):
    """Moves to NaN, and reports finite gradients."""

    def train_step(self, state, x, y, step):
        result = super().train_step(state, x, y, step)
        state.model.arrays()["fc2.weight"].data.fill_(np.nan)
        return result


def test_a_movement_of_nan_is_a_mismatch():
    with pytest.raises(proof.LrMismatch, match=r"fc2\.weight is off by 1\.00e\+00"):
        checked(MovesByNan("cpu"), "lenet", plan_of("lenet", "sgd"))
