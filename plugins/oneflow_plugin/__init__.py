"""OneFlow 0.9 as a framework of layerwise-lr; importing this package makes `import oneflow` possible and quiet.

The wheel is a CUDA 11 build: even for the CPU it does not import without cuBLAS 11 and cuDNN 8. They come by pip, and
OneFlow finds them by itself only beside it in the same site-packages; so they are opened here, wherever they are,
and nobody has to set LD_LIBRARY_PATH.
"""

import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerwise_lr.framework import UserError

INSTALL = "`layerwise-lr frameworks` tells how to install it"
LIBRARIES_BY = "pip install nvidia-cublas-cu11 'nvidia-cudnn-cu11<9'"
LIBRARIES = (
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
)
"""Where nvidia-cublas-cu11 and nvidia-cudnn-cu11 keep what liboneflow is linked against; each after its needs."""


def _load_libraries() -> None:
    """Open what is there; what is missing but needed, the import of oneflow will name."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    for name in LIBRARIES:
        for path in (root / name for root in roots):
            if path.exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                break


@contextmanager
def _quiet() -> Iterator[None]:
    """File descriptor 2 into a file: C++ writes "libibverbs not available" and the like straight to it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _import() -> None:
    os.environ.setdefault("GLOG_minloglevel", "3")  # OneFlow's C++ log: fatal errors only
    os.environ.setdefault("ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION", "0")  # else fp32 products are rounded to 10 bits
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # that one is cuBLAS's alone; convolutions are cuDNN's
    # OneFlow keeps what it inferred for an operator by its attributes, 131,072 times; an update's lr and bias correction
    # are attributes, and other ones at each step: 0.9 KiB a parameter and step until that number (measured)
    os.environ.setdefault("ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE", "512")
    _load_libraries()
    try:
        with _quiet():
            import oneflow
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"oneflow does not load ({why}): {LIBRARIES_BY}") from None
    if not hasattr(oneflow, "nn"):
        raise UserError(
            f"the installed oneflow is a placeholder without contents; 0.9.0 has wheels for Python 3.8 "
            f"to 3.10, this is {sys.version_info.major}.{sys.version_info.minor}: {INSTALL}"
        )


if importlib.util.find_spec("oneflow"):  # where it is not installed, the registry says how to install it
    _import()
