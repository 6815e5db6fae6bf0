"""What a key that does not exist may have meant, of all keys there are."""

from difflib import get_close_matches

from .options import leaves

SYNONYMS = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), "lr"),
    **dict.fromkeys(("max_epochs", "num_epochs", "num_train_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps"), "steps"),
    **dict.fromkeys(("bs", "batch", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("accelerator", "gpu", "cuda"), "device"),
    **dict.fromkeys(("wd",), "weight_decay"),
    **dict.fromkeys(("lr_decay", "layerwise_lr_decay", "llrd", "decay_rate"), "layer_decay"),
    **dict.fromkeys(("warmup_steps", "warmup_epochs", "warmup_ratio", "num_warmup_steps"), "warmup"),
    **dict.fromkeys(("img_size", "input_size", "resolution", "size"), "image_size"),
    **dict.fromkeys(("data_dir", "data_path", "root", "checkpoint_path", "ckpt_path"), "path"),
    **dict.fromkeys(("drop", "dropout_rate", "drop_rate"), "dropout"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype"), "precision"),
    **dict.fromkeys(("min_lr", "eta_min"), "floor"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    "grouping.depth": "convention",  # its name once
}
"""What other programs call our keys."""
CLOSE = 0.75
"""How alike a mistyped word must be: below it the suggestions mislead."""


def meant(key: str) -> str:
    """What a key may have meant: "lr" is optimizer.lr, "trainer.max_epochs" epochs, "modle" model.

    A word beside the one that was typed comes first, then the last words of all keys.
    """
    typed = key.partition("=")[0].lstrip("+~")
    parent, _, word = typed.rpartition(".")
    known = {leaf: leaf.rpartition(".")[2] for leaf in leaves()}
    word = SYNONYMS.get(typed, SYNONYMS.get(word, word))
    same = [leaf for leaf, last in known.items() if last == word]
    if not same:
        depth = len(parent.split(".")) + 1 if parent else 1
        beside = {".".join(leaf.split(".")[:depth]) for leaf in known if not parent or leaf.startswith(f"{parent}.")}
        same = _close(word, {name: name.rpartition(".")[2] for name in sorted(beside)}) or _close(word, known)
    return f"; did you mean {' or '.join(same[:4])}?" if word and same and key not in same else ""


def _close(word: str, known: dict[str, str]) -> list[str]:
    """The keys whose last word is closest to `word`."""
    best = get_close_matches(word, known.values(), n=1, cutoff=CLOSE)
    return [key for key, last in known.items() if last in best]
