"""Hydra config groups: names and numbers only, never a dotted path to import."""
