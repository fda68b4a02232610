"""Backbones. Importing this package registers with timm the networks it lacks: `small` and `cosine_classifier`."""

from cskd_hf.models import cosine, small

__all__ = ["cosine", "small"]
