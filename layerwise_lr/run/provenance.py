"""What a run was made with: machine, versions, threads, an allow-list of the environment, the state of the code."""

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..planning import masked_text

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
MAX_DIFF = 1_000_000
SECRETS = (
    *(".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg"),
    *(
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        ".pgpass",
        ".htpasswd",
    ),
    *(".aws/**", ".ssh/**", ".docker/**", "kubeconfig*", "token", "credentials"),
    *(
        f"*{word}*.{kind}"
        for word in ("secret", "credential", "password", "token")
        for kind in ("json", "yaml", "yml", "toml", "ini", "cfg", "txt")
    ),
)
"""Files that git.diff leaves out, as git writes patterns; what git does not track is in no diff."""


def environment() -> dict[str, Any]:
    """env.json, without what only the framework knows."""
    return {
        "layerwise_lr": __version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("numpy", "pillow")},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
    }


def requirements() -> str:
    """requirements.lock.txt: every distribution of this environment with its version."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items(), key=lambda i: i[0].lower()))


def git(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """git.json of the repository that `folder` (the current directory) is in, and its diff; (None, "") outside one."""

    def ask(*words: str) -> str | None:
        try:  # nothing that a repository's own config names is run
            bare = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
            command = ["git", "-C", str(folder), *bare, *words]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    sha = ask("rev-parse", "HEAD")
    if sha is None:
        return None, ""
    changed = (ask("status", "--porcelain") or "").splitlines()
    facts = {
        "of": "current directory",
        "sha": sha.strip(),
        "branch": (ask("branch", "--show-current") or "").strip(),
        "dirty": bool(changed),
        "changed": changed[:100],
    }
    if not changed:
        return facts, ""
    but = [f":(top,exclude,icase,glob)**/{name}" for name in SECRETS]
    diff = ask("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", ":(top)", *but)
    return facts, masked_text((diff or "")[:MAX_DIFF])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
