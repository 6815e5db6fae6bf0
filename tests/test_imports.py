"""docs/architecture.md as a test: who may import whom, who writes files, who starts processes."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "layerwise_lr"
WINGS = ("planning", "data", "models", "framework", "run", "sweep", "report", "cli")
"""In the order of the arrow: a wing may use those before it."""
CORE = sorted(PACKAGE.rglob("*.py"))
PLUGINS = sorted(p for p in (ROOT / "plugins").glob("*/*.py") if p.parent.name != "_hydra")
HYDRA_DOOR = sorted((ROOT / "plugins" / "_hydra").glob("*.py"))
ALL = [*CORE, *PLUGINS, *HYDRA_DOOR]
ZOOS = {"timm", "torchvision", "transformers", "flowvision", "mindcv"}
FRAMEWORKS = {
    "torch",
    "torchvision",
    "timm",
    "oneflow",
    "flowvision",
    "mindspore",
    "mindcv",
    "megengine",
    "jax",
    "flax",
    "tensorflow",
    "keras",
    "paddle",
    "lightning",
}
HYDRA = {"hydra", "hydra_plugins"}


def name_of(path):
    return str(path.relative_to(ROOT))


def tree_of(path):
    return ast.parse(path.read_text())


def package_of(path):
    if path.is_relative_to(PACKAGE):
        return ["layerwise_lr", *path.parent.relative_to(PACKAGE).parts]
    return ["layerwise_lr", "plugins", path.parent.name]


def imported(path, nodes=None):
    """Absolute dotted names of everything that a file imports, lazily or not."""
    found = set()
    for node in nodes if nodes is not None else ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package_of(path)[: len(package_of(path)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def tops(path):
    return {name.partition(".")[0] for name in imported(path)}


def wing_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def wing_imports(path):
    """(wing, the rest of the dotted name) of everything of the core that a file imports from a wing."""
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "layerwise_lr" and len(parts) > 1 and parts[1] in WINGS:
            yield parts[1], ".".join(parts[2:])


def face(wing):
    """Names that a wing's __init__ exports."""
    for node in tree_of(PACKAGE / wing / "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{wing}/__init__.py has no __all__")


def test_the_files_are_found():
    assert {"plan.py", "proof.py", "page.py", "program.py", "hydra_app.py"} <= {p.name for p in CORE}
    assert {p.parent.name for p in PLUGINS} >= {"torch_plugin"}
    assert HYDRA_DOOR


def test_the_top_of_the_package_tells_the_story():
    entries = {p.name for p in PACKAGE.iterdir() if p.name not in ("__pycache__", "py.typed")}
    assert entries == {"__init__.py", "__main__.py", *WINGS}
    assert len(entries) <= 10


@pytest.mark.parametrize("path", [p for p in CORE if wing_of(p)], ids=name_of)
def test_a_wing_uses_the_wings_before_it_by_their_faces_alone(path):
    own = wing_of(path)
    for wing, name in wing_imports(path):
        if wing != own:
            assert WINGS.index(wing) < WINGS.index(own), f"{name_of(path)} looks back at {wing}"
            assert name in face(wing) | {"conformance"}, f"{name_of(path)} goes past the face of {wing}: {name}"


@pytest.mark.parametrize("wing", WINGS)
def test_a_face_says_what_the_wing_is_for_and_exports_what_is_there(wing):
    told = ast.get_docstring(tree_of(PACKAGE / wing / "__init__.py"))
    assert told and len(told.splitlines()) <= 8
    assert wing == "planning" or "ses " in told, "which wings it uses"
    module = importlib.import_module(f"layerwise_lr.{wing}")
    assert all(hasattr(module, name) for name in face(wing))


def test_hydra_is_known_to_the_command_line_and_its_side_door_only():
    users = {name_of(p) for p in ALL if tops(p) & HYDRA}
    assert users <= {"layerwise_lr/cli/hydra_app.py", *map(name_of, HYDRA_DOOR)}
    assert "layerwise_lr/cli/hydra_app.py" in users


def test_omegaconf_is_known_to_four():
    users = {name_of(p) for p in ALL if "omegaconf" in tops(p)}
    assert users <= {
        *("layerwise_lr/cli/hydra_app.py", "layerwise_lr/run/reading.py", "layerwise_lr/run/environment.py"),
        *map(name_of, HYDRA_DOOR),
    }
    assert "layerwise_lr/run/reading.py" in users


@pytest.mark.parametrize("path", [*CORE, *HYDRA_DOOR], ids=name_of)
def test_the_core_imports_no_framework(path):
    assert not tops(path) & FRAMEWORKS


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_no_plugin(path):
    names = imported(path)
    told = {f"layerwise_lr.plugins.torch_plugin.fast.{name}" for name in ("AdamW", "SGD")}  # to type checkers
    told = told if path == PACKAGE / "__init__.py" else set()
    assert not [n for n in names - told if n.startswith("layerwise_lr.plugins")]
    assert path.name == "hydra_app.py" or not [n for n in names if n.startswith("hydra_plugins")]


def test_who_imports_by_name():
    users = {name_of(p) for p in ALL if "importlib.import_module" in p.read_text() or "__import__" in p.read_text()}
    plugins = {f"layerwise_lr/{room}.py" for room in ("framework/registry", "framework/admission", "data/files")}
    asked = {
        "layerwise_lr/cli/foreign.py"
    }  # verify --factory module:function: the user's own word, on the command line
    assert users == plugins | asked
    runners = {name_of(p) for p in ALL if "runpy" in tops(p)}
    assert runners == asked  # verify --script: likewise


@pytest.mark.parametrize("folder", sorted({p.parent for p in PLUGINS}), ids=name_of)
def test_a_plugin_imports_its_framework_and_the_contract_and_nothing_else_of_ours(folder):
    used, frameworks = set(), set()
    for path in folder.glob("*.py"):
        used |= {
            ".".join(n.split(".")[:2]) for n in imported(path) if n.startswith("layerwise_lr.") and ".plugins." not in n
        }
        frameworks |= tops(path) & FRAMEWORKS
        others = [n for n in imported(path) if n.startswith("layerwise_lr.plugins.") and n.split(".")[2] != folder.name]
        assert not others
        assert not tops(path) & (HYDRA | {"omegaconf"})
    assert used <= {"layerwise_lr.framework"}
    assert len(frameworks - ZOOS) <= 1  # the reference plugin is NumPy alone
    assert frameworks or folder.name == "reference_plugin"


def calls(path):
    """Dotted names of everything that a file calls; a method on anything but a name is ".name"."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Attribute):
                yield (f"{f.value.id}.{f.attr}" if isinstance(f.value, ast.Name) else f".{f.attr}"), node
            elif isinstance(f, ast.Name):
                yield f.id, node


STARTERS = re.compile(
    r"^(subprocess\.\w+|os\.(fork\w*|spawn\w*|exec\w*|system|popen|posix_spawn\w*)|multiprocessing\..*"
    r"|Popen|fork|system)$"
)


THREADS = {"concurrent.futures.Future", "concurrent.futures.ThreadPoolExecutor"}
"""No processes."""


def test_threads_are_started_where_pictures_are_loaded():
    users = {name_of(p) for p in ALL if imported(p) & THREADS or "threading.Thread" in {n for n, _ in calls(p)}}
    assert users == {"layerwise_lr/data/loading.py"}


def test_processes_are_started_where_it_is_said():
    users = {
        name_of(p)
        for p in ALL
        if any(STARTERS.match(n) for n, _ in calls(p))
        or any(n.startswith(("multiprocessing", "concurrent")) and n not in THREADS for n in imported(p))
    }
    assert users <= {
        f"layerwise_lr/{n}.py"
        for n in (
            *(
                "cli/machine",
                "cli/checking",
                "cli/finding",
                "cli/reproducing",
                "sweep/jobs",
                "sweep/placing",
                "sweep/guard",
            ),
            *("data/fetch", "run/provenance"),
        )
    } | {"plugins/torch_plugin/team.py"}
    assert "layerwise_lr/sweep/jobs.py" in users


def writes(path):
    for name, call in calls(path):
        last = name.rpartition(".")[2]
        if last in ("write_text", "write_bytes", "savefig", "savez", "savez_compressed", "save_file", "to_csv", "dump"):
            # a RunFolder's own write_text and write_json are the way through folder.py
            if (last == "write_text" and name.partition(".")[0] in ("folder", "home")) or (
                name == ".write_text"
                and isinstance(call.func.value, ast.Attribute)
                and call.func.value.attr == "folder"
            ):
                continue
            yield name
        if name in ("np.save", "torch.save", "Image.save", "shutil.copy", "shutil.copyfile", "os.open"):
            yield name
        if last == "open":
            constants = [
                a.value
                for a in (*call.args, *(k.value for k in call.keywords if k.arg == "mode"))
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
            if any(re.fullmatch(r"[rwaxbt+]+", c) and set(c) & set("wax+") for c in constants):
                yield name


def test_files_are_written_where_it_is_said():
    writers = {p.stem: sorted(set(writes(p))) for p in ALL if list(writes(p))}
    assert set(writers) <= {
        "folder",
        "files",
        "checkpoints",
        "alive",
        "sources",
        "caching",
        "jobs",
        "logs",
        "guard",
        "report",
        "drawing",
        "skeleton",
    }
    assert {"folder", "sources"} <= set(writers)


def test_nothing_asks_for_a_framework_by_name():
    quoted = r"[\"']"
    pattern = re.compile(rf"framework(\.name)?\s*(==|!=)\s*{quoted}|framework\S* in [(\[{{]{quoted}")
    assert pattern.search('if framework == "torch"')
    assert pattern.search("if config.framework.name in ('torch', 'mindspore')")
    assert not [name_of(p) for p in ALL if pattern.search(p.read_text())]


@pytest.mark.parametrize("wing", WINGS)
def test_the_modules_of_a_wing_form_no_cycle(wing):
    own = {p.stem: p for p in (PACKAGE / wing).glob("*.py") if p.stem != "__init__"}
    edges = {
        stem: {name.partition(".")[0] for w, name in wing_imports(path) if w == wing} & set(own) - {stem}
        for stem, path in own.items()
    }
    while edges:
        free = [stem for stem, used in edges.items() if not used & set(edges)]
        assert free, f"a cycle among {sorted(edges)}"
        edges = {stem: used for stem, used in edges.items() if stem not in free}


def test_the_import_has_no_side_effect_and_brings_no_stranger():
    code = """
import json, os, sys, time
before = set(sys.modules)
environment = dict(os.environ)
begin = time.perf_counter()
import layerwise_lr
took = time.perf_counter() - begin
added = sorted({m.partition(".")[0] for m in set(sys.modules) - before})
print(json.dumps([added, took, environment == dict(os.environ)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    added, took, same_environment = json.loads(done.stdout)
    assert added == ["layerwise_lr"]
    assert took < 0.05
    assert same_environment
    assert done.stderr == ""


@pytest.mark.parametrize("module", WINGS[:-1])
def test_no_module_of_the_core_brings_a_framework_or_hydra(module):
    code = f"import sys, layerwise_lr.{module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & (FRAMEWORKS | HYDRA)
    assert "layerwise_lr" in loaded


def test_the_library_comes_with_numpy_alone():
    """What the command line, the run folder and the readers of files need is imported when it is needed."""
    code = "import sys, layerwise_lr.framework; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"layerwise_lr", "numpy"} <= loaded
    assert not loaded & {"PIL", "safetensors", "yaml", "scipy", "matplotlib", "omegaconf", "rich", "jinja2"}


YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_a_config_names_a_command_and_no_code(path):
    text = path.read_text()
    assert re.search(r"^# .*layerwise-lr \w+", "\n".join(text.splitlines()[:2]), re.MULTILINE)
    assert "_target_" not in text
    assert "!!python" not in text


def test_no_module_has_a_name_that_says_nothing():
    assert not {p.stem for p in ALL} & {"utils", "util", "common", "helpers", "base", "misc"}


@pytest.mark.parametrize("path", [*ALL, *YAMLS], ids=name_of)
def test_no_path_of_a_machine_is_in_the_product(path):
    assert not re.search(r"/(work|root|home|tmp)/\w|\.\./shared", path.read_text())
