"""verify --script and verify --factory, on scripts as people write them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

SCRIPT = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))))

def groups(model, lrs=(1e-5, 1e-4, 1e-3), **keys):
    layers = (model.stem, model.body, model.head)
    return [{"params": list(l.parameters()), "lr": lr, **{k: v[i] for k, v in keys.items()}}
            for i, (l, lr) in enumerate(zip(layers, lrs))]

def train(model, optimizer, scheduler=None):
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.randint(0, 3, (6,))).backward()
        optimizer.step()
        open(f"step{step}", "w").close()
        if scheduler:
            scheduler.step()
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def written(name: str, code: str) -> Path:
        path = tmp_path / name
        path.write_text(SCRIPT + dedent(code))
        return path

    return written


HEALTHY = """
    def main():
        model = Net()
        optimizer = torch.optim.AdamW(groups(model))
        train(model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10))
    if __name__ == "__main__":
        main()
"""
UNREAD = """
    model = Net()
    optimizer = torch.optim.AdamW(groups(model, (1e-3,) * 3, lr_scale=(0.01, 0.1, 1.0)))
    train(model, optimizer)
"""


def test_a_healthy_script_is_right_and_ends_before_its_first_step(
    call: Callable, write: Callable, tmp_path: Path
) -> None:
    write("train.py", HEALTHY)
    code, out, err = call("verify --script train.py")
    assert (code, err) == (0, "")
    assert "CosineAnnealingLR" in out and "nothing is wrong" in out
    assert not list(tmp_path.glob("step*"))


@pytest.mark.parametrize(
    "line", ["--script train.py", "--script=train.py", "--steps 3 --script train.py", "--script train.py --script x"]
)
def test_a_sick_script_is_told_in_one_table(line: str, call: Callable, write: Callable) -> None:
    write("train.py", UNREAD)
    code, out, err = call(f"verify {line}")
    assert code == 1
    assert out.count("WRONG: ") == 1 and "WRONG: lr_scale that nobody reads" in out
    assert err == "layerwise-lr: lr_scale that nobody reads: group 0, group 1, group 2\n"
    assert [row for row in out.splitlines() if len(row) > 80] == []


def test_words_after_the_script_are_its_own(call: Callable, write: Callable) -> None:
    write("train.py", "print('words', sys.argv)\n" + dedent(HEALTHY))
    _, out, _ = call("verify --script train.py --steps 5 seed=1")
    assert "words ['train.py', '--steps', '5', 'seed=1']" in out


def test_the_scheduler_and_the_whole_model_are_found(call: Callable, write: Callable) -> None:
    write(
        "train.py",
        """
        class Wrapper(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner, self.forgotten = inner, nn.Linear(2, 2)
            def forward(self, x):
                return self.inner(x) + self.forgotten.weight.sum()
        class Trainer:
            def __init__(self):
                self.model = Wrapper(Net())
                self.optimizer = torch.optim.SGD(groups(self.model.inner))
                self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10, eta_min=5e-5)
            def step(self):
                raise SystemExit("stepped")
        trainer = Trainer()
        train(trainer.model, trainer.optimizer, trainer.scheduler)
        """,
    )
    code, out, _ = call("verify --script train.py")
    assert code == 1
    assert "ratios that a floor or a warm-up destroys" in out
    assert "parameters in no group" in out and "forgotten.weight" in out
    assert "forgotten.bias" in out


def test_another_optimizers_parameters_are_not_missing(call: Callable, write: Callable) -> None:
    code = """
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.generator, self.critic = Net(), Net()
        both = Both()
        other = torch.optim.SGD({}.parameters(), lr=1.0)
        optimizer = torch.optim.AdamW(groups(both.generator))
        train(both.generator, optimizer)
    """
    write("gan.py", code.format("both.critic"))
    assert call("verify --script gan.py")[0] == 0
    write("stale.py", code.format("both"))
    ended, out, _ = call("verify --script stale.py")
    assert ended == 1 and "critic.stem.weight" in out


def test_real_gradients_show_what_they_do_not_reach(call: Callable, write: Callable) -> None:
    write(
        "train.py",
        """
        class Cut(Net):
            def forward(self, x):
                return self.head(self.body(self.stem(x)).detach())
        model = Cut()
        train(model, torch.optim.AdamW(groups(model)))
        """,
    )
    code, out, _ = call("verify --script train.py")
    assert code == 1 and "no gradient reaches them" in out and "stem.weight" in out


def test_a_script_that_catches_everything_is_ended_all_the_same(call: Callable, write: Callable) -> None:
    write(
        "train.py",
        """
        model = Net()
        optimizer = torch.optim.AdamW(groups(model))
        for _ in range(2):
            try:
                train(model, optimizer)
            except:
                pass
        """,
    )
    code, out, _ = call("verify --script train.py")
    assert code == 0 and "nothing is wrong" in out


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('nothing to train')", "ended without an optimizer step"),
        ("sys.exit(3)", "ended with 3 before its first optimizer step"),
        ("raise ValueError('no data\\nat all')", "ValueError in train.py, line "),
        (
            "p = nn.Parameter(torch.ones(2)); o = torch.optim.SGD([p]); p.sum().backward(); o.step()",
            "write a --factory",
        ),
    ],
)
def test_what_a_script_can_do_wrong(code: str, told: str, call: Callable, write: Callable) -> None:
    write("train.py", code)
    ended, _, err = call("verify --script train.py")
    assert ended == 2 and told in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--script", "--script needs a file"),
        ("--script nothing.py", "there is no such file"),
        ("--factory mine", "write MODULE:FUNCTION"),
        ("--factory absent_module:make", "there is no module absent_module"),
        ("--factory mine_too:absent", "has no function absent"),
        ("--factory mine_too:groups", "TypeError"),
        ("--factory mine_too:nothing", "it gave a NoneType"),
        ("--framework nonsense --script train.py", "invalid choice"),
        ("--steps x --script train.py", "invalid int"),
        ("--script train.py --factory a:b", "there is no such file"),
    ],
)
def test_what_a_user_can_do_wrong(line: str, told: str, call: Callable, write: Callable) -> None:
    write("mine_too.py", "def nothing(): pass")
    ended, _, err = call(f"verify {line}")
    assert ended == 2 and told in err and len(err.splitlines()) == 1


def test_factories(call: Callable, write: Callable) -> None:
    write(
        "mine.py",
        """
        def pair():
            model = Net()
            return model, torch.optim.AdamW(groups(model))
        def sick():
            model = Net()
            optimizer = torch.optim.AdamW(groups(model))
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=5e-5)
            return model, optimizer, scheduler, (torch.randn(2, 4), torch.tensor([0, 1]))
        def mapping():
            model, optimizer, scheduler, batch = sick()
            return {"model": model, "optimizer": optimizer, "batch": batch}
        """,
    )
    codes = {name: call(f"verify --factory mine:{name}")[0] for name in ("pair", "sick", "mapping")}
    assert codes == {"pair": 0, "sick": 1, "mapping": 0}


def test_in_a_process_of_its_own(write: Callable, tmp_path: Path) -> None:
    write("train.py", UNREAD)
    command = [str(Path(sys.executable).with_name("layerwise-lr")), "verify", "--script", "train.py"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), timeout=100)
    assert ended.returncode == 1 and "lr_scale that nobody reads" in ended.stdout


def test_help_of_both_doors(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("verify --factory x --help")
    assert code == 0 and "--script" in out and [line for line in out.splitlines() if len(line) > 80] == []


def test_the_framework_is_the_one_that_is_imported(call: Callable, write: Callable, tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("import torch\ndef train(optimizer): optimizer.step()\n")
    (tmp_path / "data.py").write_text("import oneflow.utils.data\n")
    (tmp_path / "own.py").write_text("from loop import train\nprint('ran')\n")
    ended, out, err = call("verify --script own.py")
    assert (ended, "ran" in out, "without an optimizer step" in err) == (2, True, True)
    write("both.py", "import data\n")
    for line in ("--script both.py", "--factory both:make"):
        ended, out, err = call(f"verify {line}")
        assert (ended, out, len(err.splitlines())) == (2, "", 1)
        assert "it imports torch and oneflow: say whose optimizer steps, --framework oneflow" in err
