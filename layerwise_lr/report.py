"""placeholder"""
from pathlib import Path
from .plan import Plan
def lr_heatmap(plan: Plan, path: Path) -> None:
    path.write_bytes(b"")
