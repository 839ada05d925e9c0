"""The list of training workloads."""

from __future__ import annotations

import functools
from typing import Final

from torch.optim import SGD, AdamW

from benchmarks.training import models
from benchmarks.training.workload import TrainingWorkload

__all__ = ["TRAINING", "find"]

LAYERS: Final = 12

TRAINING: Final[tuple[TrainingWorkload, ...]] = (
    TrainingWorkload(
        "train_bert",
        "BERT-base, 12 layers",
        "2x128 tokens",
        models.bert_classifier(LAYERS),
        models.bert_inputs,
        functools.partial(AdamW, lr=2e-5),
        draws=True,
        saved=0.5,
    ),
    TrainingWorkload(
        "train_gpt2",
        "GPT-2 small, 12 layers",
        "2x256 tokens",
        models.gpt2(LAYERS),
        models.gpt2_inputs,
        functools.partial(SGD, lr=0.01),
        draws=True,
        saved=0.5,
    ),
    TrainingWorkload(
        "train_resnet152",
        "ResNet-152",
        "4x3x224x224",
        models.image_classifier(152),
        models.image_inputs,
        functools.partial(SGD, lr=0.01, momentum=0.9),
        saved=0.6,
    ),
    TrainingWorkload(
        "train_cross_entropy",
        "Linear(512, 50000) + cross entropy",
        "4096 rows",
        models.vocabulary_loss,
        models.vocabulary_inputs,
        functools.partial(SGD, lr=1.0),
        curve=4,  # a step takes seconds
        peak=0.2,
    ),
    TrainingWorkload(
        "train_step_cnn",
        "Small CNN, whole step, AdamW, clipping",
        "64x3x32x32",
        models.small_cnn,
        models.small_image_inputs,
        functools.partial(AdamW, lr=1e-3),
        whole_step=True,
        draws=True,
    ),
    TrainingWorkload(
        "train_step_bert",
        "BERT-base, 2 layers, whole step, AdamW, clipping",
        "2x128 tokens",
        models.bert_classifier(2),
        models.bert_inputs,
        functools.partial(AdamW, lr=2e-5),
        whole_step=True,
        draws=True,
    ),
)


def find(name: str) -> TrainingWorkload:
    """The workload called `name`. Raises `KeyError` naming those there are."""
    for workload in TRAINING:
        if workload.name == name:
            return workload
    raise KeyError(f"no training workload {name!r}; there are {', '.join(workload.name for workload in TRAINING)}")
