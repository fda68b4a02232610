"""CS-KD for timm and Hugging Face: train image classifiers that say honestly how sure they are."""

__version__ = "0.1.0"
