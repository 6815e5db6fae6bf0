"""The page: what is refused before a folder is claimed, what a run's own numbers say, what a frozen layer keeps."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from layerwise_lr.data import DataSpec
from layerwise_lr.models import WeightsSpec, weights
from layerwise_lr.planning import FreezeSpec, GroupingSpec, GroupSpec, OptimizerSpec, ScheduleSpec, UserError
from layerwise_lr.run import CONFIG, Config, FrameworkSpec, RunFolder, page, read_metrics, resolve
from layerwise_lr.run.schema import ModelSpec, VerifySpec

SMALL = Config(data=DataSpec(val_size=10, test_size=10), batch_size=5, steps=2, eval_every=2)
RESNET = replace(
    SMALL, model=ModelSpec("resnet18"), data=DataSpec(val_size=10, test_size=10, channels=3, image_size=32)
)
HEAD_ALONE = FreezeSpec("only", match=["fc"])
FRAMEWORKS = ("torch", "reference")


def run(folder, config):
    """The final config, trained; its folder."""
    claimed = RunFolder.claim(folder)
    claimed.write_text(CONFIG, resolve(config).to_yaml())
    page.run(folder, say=lambda line: None)
    return folder


def ends(folder):
    latest = (folder / "checkpoints" / "latest").read_text().strip()
    return load_file(folder / "checkpoints" / latest / "model.safetensors")


# --- before anything is claimed


@pytest.mark.parametrize("freeze", [FreezeSpec(), FreezeSpec("head_first", every=1)])
def test_one_picture_has_no_statistics(freeze):
    alone = resolve(replace(RESNET, batch_size=1, freeze=freeze))
    with pytest.raises(UserError, match="batch_size=1: model resnet18 has batchnorm layers that train"):
        page.plan_of(alone)


def test_one_picture_will_do_where_no_statistics_are_taken():
    """A model without batchnorm, and layers that rest throughout."""
    page.plan_of(resolve(replace(SMALL, batch_size=1)))
    page.plan_of(resolve(replace(RESNET, batch_size=1, freeze=HEAD_ALONE)))


@pytest.mark.parametrize(
    ("steps", "scheduler", "good"),
    [
        (1, ScheduleSpec("cosine", warmup=1), False),
        (1, ScheduleSpec("cosine", warmup=1, warmup_start=0.1), True),
        (2, ScheduleSpec("cosine", warmup=2), True),
        (4, ScheduleSpec("multistep", gamma=0.0, milestones=[0]), False),
        (4, ScheduleSpec("multistep", gamma=0.0, milestones=[3]), True),
    ],
)
def test_a_schedule_that_is_zero_throughout_is_refused(steps, scheduler, good):
    config = resolve(replace(SMALL, steps=steps, scheduler=scheduler, eval_every=1))
    *_, given = (good and page.plan_of(config)) or (None,)
    if good:
        assert any(any(given.lrs(step)) for step in range(steps))
        return
    with pytest.raises(UserError, match=f"lr is 0 at every step.*the run has {steps} steps: lower scheduler.warmup"):
        page.plan_of(config)


@pytest.mark.parametrize("gamma", [3.0, 1e300])
def test_a_schedule_that_grows_without_end_is_refused(gamma):
    config = replace(SMALL, steps=100, scheduler=ScheduleSpec("exponential", gamma=gamma, every=1))
    with pytest.raises(UserError, match=r"lr is above 1e\+06 at their last step.*lower scheduler.gamma"):
        page.plan_of(resolve(config))


def test_a_long_run_s_table_is_never_held(tmp_path):
    """200000 rows of ten groups would be some 40 MB of text, and 16 MB as bare numbers."""
    freeze = FreezeSpec("after", match=["fc2"], at=12_345)
    _, table, plan = page.plan_of(resolve(replace(SMALL, steps=200_000, freeze=freeze)))
    tracemalloc.start()
    page.write_plan(RunFolder(tmp_path), table, plan)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    rows = (tmp_path / "lrs.csv").read_text().splitlines()[1:]
    steps = [int(row.partition(",")[0]) for row in rows]
    edges = {edge for group in plan.groups for edge in group.active if 0 < edge < 200_000}
    assert edges == {12_345} and steps == sorted({*range(0, 200_000, 20), *edges, 199_999})
    for step, row in list(zip(steps, rows, strict=True))[::997]:
        assert [float(lr) for lr in row.split(",")[1:]] == plan.lrs(step)


@pytest.mark.parametrize(("total", "apart"), [(1, 1), (9_999, 1), (10_000, 1), (10_001, 2), (1_000_000, 100)])
def test_every_lr_of_a_run_of_ten_thousand_steps_is_written_down(total, apart):
    *_, plan = page.plan_of(resolve(replace(SMALL, steps=total, scheduler=ScheduleSpec("constant"), eval_every=total)))
    assert plan.shown() == sorted({*(step for step in range(total) if step % apart == 0), total - 1})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": ModelSpec("mlp", width=10**6, depth=3)}, "model mlp has .* numbers.*GiB, this machine has"),
        ({"model": ModelSpec("mlp", width=2), "data": DataSpec(image_size=4096)}, "data digits at image_size=4096"),
    ],
)
def test_what_no_memory_holds_is_refused(change, says, monkeypatch):
    small = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**20}  # 4 GiB
    monkeypatch.setattr(page.os, "sysconf", small.__getitem__)
    with pytest.raises(UserError, match=f"{says}.*take smaller sizes"):
        page.check_memory(resolve(replace(SMALL, **change)))
    page.check_memory(resolve(SMALL))


# --- a run's own numbers


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("proof", [True, False])
def test_a_number_that_is_none_names_what_was_measured(tmp_path, framework, proof):
    """Weights of 1e30: neither the framework's fault nor the lr's."""
    tree = resolve(SMALL).tree()
    arrays = weights.start_weights(tree, WeightsSpec(), 0)[0]
    np.savez(tmp_path / "w.npz", **(arrays | {"conv2.weight": np.full_like(arrays["conv2.weight"], 1e30)}))
    config = replace(
        SMALL,
        framework=FrameworkSpec(framework),
        weights=WeightsSpec("file", str(tmp_path / "w.npz")),
        data=replace(SMALL.data, std=[1e-6]),
        verify=VerifySpec(start=proof, training=proof),
    )
    with pytest.raises(UserError) as told:
        run(tmp_path / "run", config)
    said = str(told.value)
    assert ("at step 0, before anything was trained" in said) == proof
    assert "the pictures reach 5e+05 (data.mean, data.std)" in said
    assert "the start weights 1e+30 in conv2.weight (weights)" in said
    assert "optimizer.lr" not in said


def test_a_loss_that_leaves_the_numbers_later_names_the_lr(tmp_path):
    config = replace(SMALL, steps=30, optimizer=OptimizerSpec("sgd", lr=1e6, weight_decay=0.0))
    with pytest.raises(UserError, match=r"is (nan|inf) at step [1-9].*lower optimizer.lr \(it is 1e\+06\)"):
        run(tmp_path / "run", replace(config, verify=VerifySpec(start=False, training=False)))


LATE = replace(SMALL, steps=30, verify=VerifySpec(start=False, training=False), framework=FrameworkSpec("reference"))
SGD = OptimizerSpec("sgd", lr=1e-3, weight_decay=0.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimizer": replace(SGD, lr=1e6)}, r"lower optimizer\.lr \(it is 1e\+06\)"),
        ({"optimizer": replace(SGD, weight_decay=1e6)}, r"lower weight_decay: times the lr it is 1e\+03 in group"),
        (
            {"optimizer": SGD, "grouping": GroupingSpec("flat", groups={"a": GroupSpec(["fc1*"], lr=1e6)})},
            r"lower optimizer\.lr \(it is 0\.001; group a has 1e\+06\)",
        ),
        (
            {"optimizer": replace(SGD, lr=0.1), "data": replace(SMALL.data, std=[1e-6])},
            r"the pictures reach 5e\+05 \(data\.mean, data\.std\), the start weights \d",
        ),
        ({"optimizer": SGD, "weights": "big"}, r"the start weights 2e\+05 in conv2\.weight \(weights\)"),
    ],
    ids=["lr", "weight decay", "lr of a group", "pictures", "weights"],
)
def test_what_leaves_the_numbers_later_names_what_was_measured(tmp_path, change, says):
    config = replace(LATE, scheduler=ScheduleSpec("constant"), **{k: v for k, v in change.items() if k != "weights"})
    if "weights" in change:
        arrays = weights.start_weights(resolve(config).tree(), WeightsSpec(), 0)[0]
        np.savez(tmp_path / "w.npz", **(arrays | {"conv2.weight": np.full_like(arrays["conv2.weight"], 2e5)}))
        config = replace(config, weights=WeightsSpec("file", str(tmp_path / "w.npz")))
    with pytest.raises(UserError, match=rf"is (nan|inf) at step [1-9]\d*: .*{says}"):
        run(tmp_path / "run", config)


# --- a frozen layer's statistics


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_a_frozen_layer_keeps_its_statistics_unless_told_otherwise(tmp_path, framework, batchnorm):
    freeze = replace(HEAD_ALONE, batchnorm=batchnorm)
    config = resolve(replace(RESNET, framework=FrameworkSpec(framework), freeze=freeze))
    start, _ = weights.start_weights(config.tree(), config.weights, page.seed_streams(config.seed)["init"])
    end = ends(run(tmp_path / "run", config))
    statistics = [name for name in start if name.endswith((".running_mean", ".running_var"))]
    assert len(statistics) == 40  # 20 layers
    moved = {name for name in start if not np.array_equal(start[name], end[name])}
    assert moved == {"fc.weight", "fc.bias"} | (set(statistics) if batchnorm == "train" else set())


def test_of_a_long_run_metrics_tell_the_lrs_at_the_steps_of_lrs_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("layerwise_lr.planning.plan.MOST_SHOWN", 5)
    config = replace(SMALL, framework=FrameworkSpec("reference"), steps=12, model=ModelSpec("mlp"))
    config = replace(config, freeze=FreezeSpec("after", match=["fc1"], at=4), eval_every=12)
    folder = run(tmp_path / "run", config)
    told = {r["step"]: r.get("lrs") for r in read_metrics(folder / "metrics.jsonl") if "loss" in r}
    table = [row.split(",") for row in (folder / "lrs.csv").read_text().splitlines()[1:]]
    assert [int(step) for step, *_ in table] == [0, 3, 4, 6, 9, 11] and sorted(told) == list(range(12))
    for step, *lrs in table:
        assert told[int(step)] == pytest.approx([float(lr) for lr in lrs])
    assert [step for step, lrs in told.items() if lrs is not None] == [0, 3, 4, 6, 9, 11]
