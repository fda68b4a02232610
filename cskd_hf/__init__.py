"""CS-KD for timm and Hugging Face: train image classifiers whose confidence can be trusted.

The names below load lazily, so that `import cskd_hf` alone imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cskd_hf.batch import Batch as Batch
    from cskd_hf.data.batches import GlobalBatches as GlobalBatches
    from cskd_hf.data.drop_in import PairedDataset as PairedDataset
    from cskd_hf.data.pairing import PairedImages as PairedImages
    from cskd_hf.data.pairing import PairingCollator as PairingCollator
    from cskd_hf.data.sampling import ClassPairSampler as ClassPairSampler
    from cskd_hf.data.sampling import Draw as Draw
    from cskd_hf.data.sampling import ImageSampler as ImageSampler
    from cskd_hf.data.splits import load_images as load_images
    from cskd_hf.engine.objective import Objective as Objective
    from cskd_hf.evaluation.calibration import apply_temperature as apply_temperature
    from cskd_hf.evaluation.calibration import calibrate as calibrate
    from cskd_hf.evaluation.calibration import fit_temperature as fit_temperature
    from cskd_hf.evaluation.calibrators import compare_maps as compare_maps
    from cskd_hf.evaluation.confidence import adaptive_ece as adaptive_ece
    from cskd_hf.evaluation.confidence import augrc as augrc
    from cskd_hf.evaluation.confidence import aurc as aurc
    from cskd_hf.evaluation.confidence import aurc_logit_norm as aurc_logit_norm
    from cskd_hf.evaluation.confidence import classwise_ece as classwise_ece
    from cskd_hf.evaluation.confidence import debiased_ece as debiased_ece
    from cskd_hf.evaluation.confidence import ece as ece
    from cskd_hf.evaluation.confidence import smooth_ece as smooth_ece
    from cskd_hf.evaluation.conformal import conformal_quantile as conformal_quantile
    from cskd_hf.evaluation.conformal import prediction_sets as prediction_sets
    from cskd_hf.evaluation.isotonic import fit_isotonic as fit_isotonic
    from cskd_hf.evaluation.metrics import brier as brier
    from cskd_hf.evaluation.metrics import evaluate_predictions as evaluate_predictions
    from cskd_hf.evaluation.metrics import nll as nll
    from cskd_hf.evaluation.metrics import recall_at_k as recall_at_k
    from cskd_hf.evaluation.metrics import top_k_error as top_k_error
    from cskd_hf.evaluation.ood import ood_detection as ood_detection
    from cskd_hf.evaluation.ood import ood_scores as ood_scores
    from cskd_hf.evaluation.refinement import refinement_loss as refinement_loss
    from cskd_hf.evaluation.vector_scaling import fit_vector_scaling as fit_vector_scaling
    from cskd_hf.methods import BYOT as BYOT
    from cskd_hf.methods import CSKD as CSKD
    from cskd_hf.methods import CSKDE as CSKDE
    from cskd_hf.methods import DDGSD as DDGSD
    from cskd_hf.methods import DLB as DLB
    from cskd_hf.methods import IPS as IPS
    from cskd_hf.methods import METHODS as METHODS
    from cskd_hf.methods import PSKD as PSKD
    from cskd_hf.methods import AdaCos as AdaCos
    from cskd_hf.methods import CrossEntropy as CrossEntropy
    from cskd_hf.methods import Distillation as Distillation
    from cskd_hf.methods import DistillationCSKD as DistillationCSKD
    from cskd_hf.methods import Experiment as Experiment
    from cskd_hf.methods import MaxEntropy as MaxEntropy
    from cskd_hf.methods import Method as Method
    from cskd_hf.methods import Mixup as Mixup
    from cskd_hf.methods import MixupCSKD as MixupCSKD
    from cskd_hf.methods import MutualCSKD as MutualCSKD
    from cskd_hf.methods import TfKDReg as TfKDReg
    from cskd_hf.methods import VirtualSoftmax as VirtualSoftmax
    from cskd_hf.methods import class_wise_kd_loss as class_wise_kd_loss
    from cskd_hf.models.export import export_model as export_model
    from cskd_hf.models.load import load_trained as load_trained
    from cskd_hf.recipe.recipe import Recipe as Recipe
    from cskd_hf.recipe.recipe import load_recipe as load_recipe
    from cskd_hf.recipe.resolve import resolve as resolve

_MODULES = {
    "cskd_hf.batch": "Batch",
    "cskd_hf.data.batches": "GlobalBatches",
    "cskd_hf.data.drop_in": "PairedDataset",
    "cskd_hf.data.pairing": "PairedImages PairingCollator",
    "cskd_hf.data.sampling": "ClassPairSampler Draw ImageSampler",
    "cskd_hf.data.splits": "load_images",
    "cskd_hf.engine.objective": "Objective",
    "cskd_hf.evaluation.calibration": "apply_temperature calibrate fit_temperature",
    "cskd_hf.evaluation.calibrators": "compare_maps",
    "cskd_hf.evaluation.confidence": "adaptive_ece augrc aurc aurc_logit_norm classwise_ece debiased_ece ece "
    "smooth_ece",
    "cskd_hf.evaluation.conformal": "conformal_quantile prediction_sets",
    "cskd_hf.evaluation.isotonic": "fit_isotonic",
    "cskd_hf.evaluation.metrics": "brier evaluate_predictions nll recall_at_k top_k_error",
    "cskd_hf.evaluation.ood": "ood_detection ood_scores",
    "cskd_hf.evaluation.refinement": "refinement_loss",
    "cskd_hf.evaluation.vector_scaling": "fit_vector_scaling",
    "cskd_hf.methods": "METHODS AdaCos BYOT CSKD CSKDE CrossEntropy DDGSD DLB Distillation DistillationCSKD Experiment "
    "IPS MaxEntropy Method Mixup MixupCSKD MutualCSKD PSKD TfKDReg VirtualSoftmax class_wise_kd_loss",
    "cskd_hf.models.export": "export_model",
    "cskd_hf.models.load": "load_trained",
    "cskd_hf.recipe.recipe": "Recipe load_recipe",
    "cskd_hf.recipe.resolve": "resolve",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
