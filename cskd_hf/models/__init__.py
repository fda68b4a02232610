"""Backbones. Importing this registers with timm what timm has not: `small` and `cosine_classifier`."""

from cskd_hf.models import cosine, small

__all__ = ["cosine", "small"]
