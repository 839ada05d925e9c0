"""Models with their losses: modules that map a batch to one number.

Weights are random, dropout is that of the published configurations, and modules are in training mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks.workloads.residual import resnet
from benchmarks.workloads.workload import Arguments, seeded

__all__ = [
    "bert_classifier",
    "bert_inputs",
    "gpt2",
    "gpt2_inputs",
    "image_classifier",
    "image_inputs",
    "small_cnn",
    "small_image_inputs",
    "vocabulary_inputs",
    "vocabulary_loss",
]

TOKENS = (2, 128)
"""(batch, tokens) of BERT."""
GPT2_TOKENS = (2, 256)
IMAGES = (4, 224)
"""(batch, height and width in pixels)"""
SMALL_IMAGES = (64, 32)
ROWS, WIDTH, VOCABULARY = 4096, 512, 50_000
BERT_WORDS, GPT2_WORDS, CLASSES = 30_522, 50_257, 1000


class ModelLoss(nn.Module):
    """The loss that a model of `transformers` computes: ids (batch, tokens), labels -> ()."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, labels=labels).loss
        return loss


def bert_classifier(layers: int) -> Callable[[], ModelLoss]:
    """BERT-base (Devlin et al. 2019) with a classifier of sequences in two classes, dropout 0.1."""
    config = {"num_hidden_layers": layers, "num_labels": 2, "problem_type": "single_label_classification"}
    return lambda: ModelLoss(BertForSequenceClassification(BertConfig(**config)))


def bert_inputs() -> Arguments:
    return torch.randint(0, BERT_WORDS, TOKENS), torch.randint(0, 2, TOKENS[:1])


def gpt2(layers: int) -> Callable[[], ModelLoss]:
    """GPT-2 small (Radford et al. 2019: 768 wide, 50,257 words) with the loss of the next token, dropout 0.1."""
    return lambda: ModelLoss(GPT2LMHeadModel(GPT2Config(n_layer=layers, use_cache=False)))


def gpt2_inputs() -> Arguments:
    ids = torch.randint(0, GPT2_WORDS, GPT2_TOKENS)
    return ids, ids


class Classifier(nn.Module):
    """Cross entropy of a model's logits: inputs (batch, ...), classes (batch,) -> ()."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, classes: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(inputs), classes)


def image_classifier(depth: int) -> Callable[[], Classifier]:
    """A residual network of 1000 classes."""
    return lambda: Classifier(resnet(depth))


def image_inputs() -> Arguments:
    batch, pixels = IMAGES
    return seeded(batch, 3, pixels, pixels), torch.randint(0, CLASSES, (batch,))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


def small_cnn() -> Classifier:
    """Three blocks of convolution, batch norm, ReLU and pooling, dropout 0.1, ten classes."""
    blocks = [_block(3, 32), _block(32, 64), _block(64, 128)]
    return Classifier(nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.1), nn.Linear(128 * 16, 10)))


def small_image_inputs() -> Arguments:
    batch, pixels = SMALL_IMAGES
    return seeded(batch, 3, pixels, pixels), torch.randint(0, 10, (batch,))


def vocabulary_loss() -> Classifier:
    """A linear layer to a large vocabulary, and its cross entropy."""
    return Classifier(nn.Linear(WIDTH, VOCABULARY, bias=False))


def vocabulary_inputs() -> Arguments:
    """Hidden states that want a gradient, as those of a model before this layer do."""
    return seeded(ROWS, WIDTH).requires_grad_(), torch.randint(0, VOCABULARY, (ROWS,))
