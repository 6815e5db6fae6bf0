"""The lr that arrives in other people's loops is the plan's: recorded at every optimizer step, against the law by hand."""

import math

import accelerate
import lightning
import pytest
import timm
import torch
import transformers
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset

import layerwise_lr as llr

STEPS, WARMUP, LR, DECAY = 12, 3, 1e-3, 0.5


class Pictures(Dataset):
    def __len__(self):
        return 4 * STEPS

    def __getitem__(self, i):
        torch.manual_seed(i)
        return {"pixel_values": torch.randn(3, 32, 32), "labels": i % 5}


class Classifier(nn.Module):
    """As Trainer wants it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=5)

    def forward(self, pixel_values, labels=None):
        logits = self.vit(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def law(step, depth, top=3):
    rises = step / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
    return LR * DECAY ** (top - depth) * rises


def depth_of(name):
    name = name.partition("vit.")[2]
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 3 if name.startswith(("head", "norm")) else 0


def planned(model, batch=None):
    return llr.plan(
        model,
        lr=LR,
        layer_decay=DECAY,
        weight_decay=0.05,
        schedule="cosine",
        warmup=WARMUP,
        steps=STEPS,
        convention="order",
        batch=batch or {"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])},
    )


def recorded(optimizer, model):
    """A list that fills with name -> lr, one entry per optimizer step."""
    names, steps = {id(p): n for n, p in model.named_parameters()}, []

    def note(native, args, kwargs):
        steps.append({names[id(p)]: float(g["lr"]) for g in native.param_groups for p in g["params"]})

    optimizer.register_step_pre_hook(note)
    return steps


def assert_is_the_plan(steps, model, many=STEPS):
    assert len(steps) == many
    for step, lrs in enumerate(steps):
        assert lrs == pytest.approx({name: law(step, depth_of(name)) for name, _ in model.named_parameters()}), step


def test_a_plain_loop():
    model = Classifier()
    plan = planned(model)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler, steps = plan.scheduler(optimizer), recorded(optimizer, model)
    for batch in DataLoader(Pictures(), batch_size=4):
        model(**batch)["loss"].backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert_is_the_plan(steps, model)


def test_lightning(tmp_path):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Classifier()

        def training_step(self, batch, index):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            plan = planned(self.net)
            optimizer = torch.optim.AdamW(plan.param_groups(self.net))
            self.steps = recorded(optimizer, self)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plan.scheduler(optimizer), "interval": "step"},
            }

    module = Module()
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Pictures(), batch_size=4))
    assert_is_the_plan(module.steps, module)


def test_transformers_trainer(tmp_path):
    model = Classifier()
    plan = planned(model)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    steps = recorded(optimizer, model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=4, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    optimizers = (optimizer, plan.scheduler(optimizer))
    transformers.Trainer(model, arguments, train_dataset=Pictures(), optimizers=optimizers).train()
    assert_is_the_plan(steps, model)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(accumulate):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = Classifier()
    plan = planned(model)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    steps = recorded(optimizer, model)
    prepared, native, loader, scheduler = accelerator.prepare(
        model, optimizer, DataLoader(Pictures(), batch_size=4), plan.scheduler(optimizer)
    )
    for batch in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch)["loss"])
            native.step()
            scheduler.step()
            native.zero_grad()
    assert_is_the_plan(steps, model, STEPS // accumulate)


def test_timms_scheduler_keeps_the_plans_ratios():
    """The plan constant, the curve timm's."""
    model = Classifier()
    plan = llr.plan(
        model,
        lr=LR,
        layer_decay=DECAY,
        convention="order",
        batch={"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])},
    )
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = CosineLRScheduler(optimizer, t_initial=STEPS, t_in_epochs=False, warmup_t=WARMUP)
    steps = recorded(optimizer, model)
    for update in range(STEPS):
        model(**next(iter(DataLoader(Pictures(), batch_size=4))))["loss"].backward()
        optimizer.step()
        scheduler.step_update(update + 1)
    for lrs in steps[1:]:
        head = lrs["vit.head.weight"]
        assert lrs == pytest.approx({n: head * DECAY ** (3 - depth_of(n)) for n, _ in model.named_parameters()})
    assert len({lrs["vit.head.weight"] for lrs in steps}) > STEPS // 2


def test_grad_scaler_and_a_skipped_step():
    """What a scaler leaves out is no step of the plan, where the loop steps the scheduler only for real ones."""
    model = Classifier()
    plan = planned(model)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler, steps = plan.scheduler(optimizer), recorded(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for index, batch in enumerate(DataLoader(Pictures(), batch_size=4)):
        loss = model(**batch)["loss"] * (math.inf if index == 4 else 1.0)
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            scheduler.step()
        optimizer.zero_grad()
    assert_is_the_plan(steps, model, STEPS - 1)
