"""verify --script on training scripts of Lightning, Accelerate and transformers' Trainer; verify on Accelerate's wrappers."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import accelerate
import pytest
import torch
from torch import nn

import layerwise_lr as llr
from layerwise_lr.framework.native import examine

ROOT = Path(__file__).resolve().parents[2]

LIGHTNING = """
    import sys, lightning, torch
    from torch import nn
    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.head(self.stem(batch[0])), batch[1])
        def configure_optimizers(self):
            stem = {"params": self.stem.parameters(), "lr": 1e-3 if "sick" in sys.argv else 1e-4, "lr_scale": 0.1}
            head = {"params": self.head.parameters(), "lr": 1e-3, "lr_scale": 1.0}
            optimizer = torch.optim.AdamW([stem, head])
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randint(0, 3, (8,)))
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(Lit(), torch.utils.data.DataLoader(data, 4))
"""
ACCELERATE = """
    import sys, torch
    from torch import nn
    from accelerate import Accelerator
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = [{"params": model[i].parameters(), "lr": lr} for i, lr in ((0, 1e-5), (2, 1e-3))]
    optimizer = torch.optim.AdamW(groups)
    floor = 5e-5 if "sick" in sys.argv else 0
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=floor)
    accelerator = Accelerator(cpu=True)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for _ in range(2):
        accelerator.backward(nn.functional.cross_entropy(model(torch.randn(4, 4)), torch.tensor([0, 1, 2, 0])))
        optimizer.step()
        scheduler.step()
"""
TRAINER = """
    import sys, torch
    import layerwise_lr as llr
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = BertForSequenceClassification(BertConfig(**small))
    data = [{"input_ids": torch.randint(0, 50, (7,)), "labels": torch.tensor(i % 2)} for i in range(8)]
    plan = llr.plan(model, lr=1e-3, layer_decay=0.75, schedule="cosine", steps=3)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    given = (optimizer, plan.scheduler(optimizer))
    if "sick" in sys.argv:
        given = (torch.optim.AdamW(model.bert.parameters(), lr=1e-3), None)
    settings = TrainingArguments("out", use_cpu=True, max_steps=3, report_to=[], disable_tqdm=True)
    Trainer(model, settings, train_dataset=data, optimizers=given).train()
"""


@pytest.mark.parametrize(
    ("script", "scheduler", "disease"),
    [
        (LIGHTNING, "CosineAnnealingLR", "lr_scale that nobody reads"),
        (ACCELERATE, "CosineAnnealingLR", "ratios that a floor or a warm-up destroys"),
        (TRAINER, "PlanScheduler", "parameters in no group"),
    ],
    ids=["lightning", "accelerate", "trainer"],
)
def test_scripts(script: str, scheduler: str, disease: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(dedent(script))
    for word, code in (("healthy", 0), ("sick", 1)):
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "layerwise_lr", "verify", "--script", "train.py", word],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            timeout=200,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        if word == "healthy":
            assert scheduler in ended.stdout and "nothing is wrong" in ended.stdout
        else:
            assert f"WRONG: {disease}" in ended.stdout


def test_accelerates_wrappers() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = llr.plan(model, lr=1e-3, layer_decay=0.5)
    optimizer = torch.optim.AdamW(plan.param_groups(model))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    wrapped = accelerate.Accelerator(cpu=True).prepare(model, optimizer, scheduler)
    report = llr.verify(*wrapped, plan)
    assert report.measured.steps[-1] == 10
    sick = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=1e-4)
    told = examine(model, wrapped[1], accelerate.Accelerator(cpu=True).prepare(sick), plan)
    assert [fault.name for fault in told.faults] == ["ratios that a floor or a warm-up destroys"]
