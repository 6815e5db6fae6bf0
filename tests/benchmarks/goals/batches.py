"""An epoch of batches against torch's DataLoader: pictures in memory, and JPEG files with crop and flip."""

import resource
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from .timing import Case, ratio

GOALS = {
    "G10": "an epoch of batches from memory / DataLoader; of JPEG files with crop and flip / DataLoader, as many workers"
}
NEEDS = ("torch", "torchvision")
DEVICES = ("cpu",)
BATCH, ROUNDS = 64, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spent() -> float:
    """CPU seconds of this process, its threads and its children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def measure(device: str) -> Iterator[Case]:
    """Both."""
    import torch

    torch.set_num_threads(1)
    ours, theirs, tensors = in_memory(60_000)
    yield from compared("60,000 of 28 pixels in memory", 0.15, ours, theirs)
    yield from compared("the same / DataLoader of tensors that are normalised already", None, ours, tensors)
    yield from compared("2,048 JPEGs of 320 x 240 to 64 pixels", 0.9, *from_files(2048, 64))


def compared(
    case: str, target: float | None, ours: Callable[[], object], theirs: Callable[[], object]
) -> Iterator[Case]:
    """By turns, after an epoch that fills caches."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for epoch, column in zip((ours, theirs), took, strict=True):
            before = spent()
            epoch()
            if turn:
                column.append(spent() - before)
    yield ratio("G10", case, *took, target)


def in_memory(pictures: int) -> list[Callable[[], object]]:
    """As torchvision's MNIST keeps and gives them."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from layerwise_lr.data import DataSpec, batches

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (pictures, 1, 28, 28), np.uint8), rng.integers(0, 10, pictures)
    spec = DataSpec("digits", "", 28, channels=1, mean=[0.13], std=[0.31])
    part = batches.Split(x, y)
    data = batches.Dataset(part, part, part, spec)
    made = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.13,), (0.31,))])

    class Mnist(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return pictures

        def __getitem__(self, index: int) -> Any:
            return made(Image.fromarray(x[index, 0])), int(y[index])

    ready = torch.utils.data.TensorDataset(torch.from_numpy(data.normalise(x)), torch.from_numpy(y))
    loaders = [DataLoader(each, BATCH, shuffle=True, drop_last=True) for each in (Mnist(), ready)]
    return [epoch_of(data, pictures // BATCH), *(partial(counted, loader) for loader in loaders)]


def counted(loader: Any) -> int:
    """Labels of an epoch."""
    return sum(len(labels) for _, labels in loader)


def from_files(pictures: int, size: int, workers: int = 1) -> tuple[Callable[[], object], Callable[[], object]]:
    """RandomResizedCrop and flip; nothing held in memory."""
    import loading
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from layerwise_lr.data import AugmentSpec, batches

    root = loading.pictures(pictures)
    augment = AugmentSpec(hflip=0.5, crop_scale=[0.08, 1.0])
    data = batches.load(loading.spec_of(root, size, workers), 0, augment)
    changed = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    folder = datasets.ImageFolder(str(root), transforms.Compose([*changed, transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(folder, BATCH, shuffle=True, drop_last=True, num_workers=workers)
    steps = len(data.train.y) // BATCH
    folder.samples = folder.samples[: steps * BATCH]  # as many pictures
    return epoch_of(data, steps), partial(counted, loader)


def epoch_of(data: Any, steps: int) -> Callable[[], object]:
    """The next epoch's batches, and their number."""
    begins = count(0, steps)

    def epoch() -> int:
        first = next(begins)
        return sum(len(data.batch(step, BATCH, 0)[1]) for step in range(first, first + steps))

    return epoch
