"""Hydra's side door: the launcher. Listed in every Hydra app of the environment, useful in ours only."""
