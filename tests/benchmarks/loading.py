"""What reading pictures costs: python tests/benchmarks/loading.py [PICTURES] [SIDE]

    read      pictures a second, by data.workers and by what is done with them
    memory    resident MiB over an epoch of pictures that stay files, at tenths of it: flat
    step      a ResNet-18 step in PyTorch on one thread, and what part of it the loop waits for its pictures
    processor the same in processor seconds: how many times over one core feeds one that trains

The pictures are JPEGs of 320 x 240, half photograph-like and half noise, made once below the system's temporary folder.
Needs torch for the last two. Look at the load: other jobs of the machine disturb all but `processor`.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from layerwise_lr.data import AugmentSpec, DataSpec, batches
from layerwise_lr.framework import begin, take_step
from layerwise_lr.run import page, reading, resolve

BATCH = 64
KINDS = {
    "none": AugmentSpec(),
    "standard": AugmentSpec(hflip=0.5, crop_scale=[0.08, 1.0], color_jitter=0.4),
    "timm_like": AugmentSpec(
        hflip=0.5, crop_scale=[0.08, 1.0], randaugment_ops=2, mixup=0.8, cutmix=1.0, random_erasing=0.25
    ),
}


def pictures(count: int) -> Path:
    """A folder of ten classes."""
    root = Path(tempfile.gettempdir(), f"layerwise_lr_jpegs_{count}")

    def write(i: int) -> None:
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), 3)
        noise = Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8))
        Image.blend(coarse, noise, 0.1).save(root / str(i % 10) / f"{i}.jpg", quality=85)

    if not root.exists():
        for name in range(10):
            (root / str(name)).mkdir(parents=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, range(count)))
    return root


def spec_of(root: Path, size: int, workers: int, memory: float = 0.0) -> DataSpec:
    """Of that folder, nothing held."""
    sizes = {"train_size": None, "val_size": 100, "test_size": 100}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return DataSpec(
        "image_folder", str(root), size, channels=3, workers=workers, memory=memory, mean=mean, std=std, **sizes
    )


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def read(root: Path, size: int) -> None:
    """Pictures a second, wall and processor."""
    for kind, augment in KINDS.items():
        for workers in (0, 1, 2):
            data = batches.load(spec_of(root, size, workers), 0, augment)
            data.batch(0, BATCH, 0)
            wall, processor = time.perf_counter(), time.process_time()
            for step in range(1, 21):
                data.batch(step, BATCH, 0)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            data.close()
            print(
                f"read      {size:>4} px  {kind:<10} workers={workers}  {20 * BATCH / wall:>7.0f} /s"
                f"  {20 * BATCH / processor:>7.0f} per processor second",
                flush=True,
            )


def memory(root: Path, size: int) -> None:
    """Resident memory over an epoch."""
    data = batches.load(spec_of(root, size, 2), 0, KINDS["none"])
    steps = len(data.train.y) // BATCH
    seen = []
    for step in range(steps):
        data.batch(step, BATCH, 0)
        if step % max(steps // 10, 1) == 0:
            seen.append(resident())
    data.close()
    print(
        f"memory    {len(data.train.y)} pictures, {size} px: MiB {' '.join(f'{mib:.0f}' for mib in seen)}", flush=True
    )


def step(root: Path, size: int) -> None:
    """ResNet-18's step, and its waits."""
    given = {
        "model": {"name": "resnet18"},
        "data": {"name": "image_folder", "path": str(root), "image_size": size, "channels": 3, "train_size": None},
        "batch_size": BATCH,
        "steps": 1000,
    }
    config = resolve(reading.from_data(given))
    subject, _, plan = page.plan_of(config)
    framework = page.make_framework(config)
    for kind, augment in KINDS.items():
        for workers in (1, 0):
            data = batches.load(spec_of(root, size, workers), 0, augment)
            model, _, _ = subject.start(framework, config, 0)
            state, times = begin(framework, model, plan), []
            for number in range(14):
                began = time.perf_counter(), time.process_time()
                x, y = data.batch(number, BATCH, 0)
                got = time.perf_counter(), time.process_time()
                take_step(framework, state, plan, number, (x, y), 0, gradients=False)
                times.append((*np.subtract(got, began), time.perf_counter() - got[0], time.process_time() - got[1]))
            data.close()
            waits, costs, works, computes = (1e3 * median(column) for column in zip(*times[3:], strict=True))
            if workers:
                print(f"step      {size:>4} px  {kind:<10} {works:.0f} ms, waits {waits:.1f} ms ({waits / works:.1%})")
            else:
                print(
                    f"processor {size:>4} px  {kind:<10} {computes:.0f} ms, a batch {costs:.0f} ms: "
                    f"one core feeds {computes / costs:.1f}",
                    flush=True,
                )


def main(count: int = 20000, size: int = 64) -> None:
    """The table."""
    print(f"Pillow {Image.__version__}; load {os.getloadavg()[0]:.1f}", flush=True)
    root = pictures(count)
    read(root, size)
    memory(root, size)
    step(root, size)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
