"""MegEngine, eager and traced. Importing this folder imports MegEngine, without its start-up noise."""

import os
import warnings

from layerwise_lr.framework import UserError

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # else cuDNN 8 rounds fp32 convolutions to 10 bits

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "pkg_resources is deprecated as an API"
        import megengine as megengine
except ModuleNotFoundError as error:
    if error.name != "pkg_resources":  # setuptools 81 dropped it
        raise
    raise UserError(
        "framework=megengine imports pkg_resources, which this environment's setuptools no longer has: "
        "pip install 'setuptools<81'"
    ) from None
