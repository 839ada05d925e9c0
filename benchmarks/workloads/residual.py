"""ResNet-50 and its deeper kin: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from benchmarks.workloads.workload import Arguments, seeded

__all__ = ["IMAGE_SHAPES", "ResNet", "images", "resnet"]

IMAGE_SHAPES = ((2, 224), (1, 160), (3, 96))
"""(batch, height and width in pixels)"""

EXPANSION = 4
INNER = (64, 128, 256, 512)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Inner channels, and blocks by depth, of conv2_x to conv5_x: table 1 of the paper."""


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    """The block of figure 5 (right): 1x1 reduces, 3x3, 1x1 restores, plus the shortcut.

    The stride of a downsampling block is on the 3x3 convolution (the arrangement known as version 1.5), where the
    paper has it on the first 1x1. A shortcut that changes shape is a strided 1x1 projection (option B).
    """

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = inner * EXPANSION
        self.reduce = _convolution(inputs, inner, 1)
        self.spatial = _convolution(inner, inner, 3, stride)
        self.restore = _convolution(inner, outputs, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.reduce(x))
        y = self.relu(self.spatial(y))
        result: Tensor = self.relu(self.restore(y) + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """(n, 3, h, w) images to (n, classes) logits; depth: 50, 101 or 152 layers."""

    def __init__(self, depth: int = 50, classes: int = 1000) -> None:
        super().__init__()
        self.stem = _convolution(3, 64, 7, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = (64, *(inner * EXPANSION for inner in INNER))
        plan = zip(INNER, BLOCKS[depth], pairwise(widths), strict=True)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        Bottleneck(inputs if block == 0 else outputs, inner, 2 if block == 0 and stage > 0 else 1)
                        for block in range(blocks)
                    )
                )
                for stage, (inner, blocks, (inputs, outputs)) in enumerate(plan)
            )
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem(images)))
        x = self.stages(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def resnet(depth: int = 50) -> ResNet:
    """He initialisation, and batch norms whose statistics and affine are not the identity."""
    model = ResNet(depth)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def images(shape_index: int) -> Arguments:
    batch, pixels = IMAGE_SHAPES[shape_index]
    return (seeded(batch, 3, pixels, pixels),)
