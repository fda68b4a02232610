"""The corruptions of ImageNet-C, by the library imagecorruptions-imaug: `pip install 'cskd_hf[corruptions]'`.

D. Hendrycks, T. Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019, https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cskd_hf.errors import UserError
from cskd_hf.seeding import seeded

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
LIBRARY = "imagecorruptions-imaug"
_OWN_SEED = ("impulse_noise", "glass_blur")  # do not draw from NumPy's global generator


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption at one severity, a pure function of (seed, row, kind, severity) and the pixels."""

    kind: str
    severity: int
    seed: int = 0

    def __call__(self, pixels: np.ndarray, row: int) -> np.ndarray:
        """Corrupt one image.

        Args:
            pixels: (H, W, C) uint8, C 1 or 3. A grey image is corrupted in colour and then converted back [ours].
            row: the image's number in its split.

        Returns:
            (H, W, C) uint8.
        """
        from imagecorruptions import corruption_dict  # its `corrupt` takes no image below 32 pixels

        key = (self.seed, row, KINDS.index(self.kind), self.severity)
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        own_seed = {"seed": seed} if self.kind in _OWN_SEED else {}
        image = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        # The library prints that zoom blur and snow do not cover some sizes by a pixel.
        with seeded(seed), contextlib.redirect_stdout(io.StringIO()):
            corrupted = np.uint8(corruption_dict[self.kind](image, self.severity, **own_seed))
        return corrupted if pixels.shape[2] == 3 else np.asarray(Image.fromarray(corrupted).convert("L"))[..., None]


def require_library() -> None:
    """Raises UserError if the library is not installed; does not import it."""
    try:
        importlib.metadata.version(LIBRARY)  # an older library has the same module name and fails with NumPy 2
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"--corruptions: needs {LIBRARY}; pip install 'cskd_hf[corruptions]'") from None


def prepare_library() -> None:
    """Import the library and compile glass blur once, before loader workers are forked.

    Raises:
        UserError: the library cannot be imported, for example because OpenCV lacks a system library.
    """
    try:
        import cv2
        import imagecorruptions  # noqa: F401
    except ImportError as error:
        raise UserError(f"--corruptions: {LIBRARY} cannot be imported: {error}") from error
    cv2.setNumThreads(0)  # a forked worker would wait for threads that it does not have
    Corruption("glass_blur", 1)(np.zeros((32, 32, 3), dtype=np.uint8), 0)
