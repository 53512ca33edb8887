"""The architectures of the small face models, untrained, with insightface's inputs and outputs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
ANCHORS = 2
EMBEDDING = 512
CROP, SWAP_CROP = 112, 128
"""Pixels along each side of the recogniser's and the swapper's input."""


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_convolution(width, width) for _ in range(depth)))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class FaceDetectorNet(nn.Module):
    """SCRFD (Guo et al. 2021), small: a pyramid of three levels, two anchors per cell.

    Maps (n, 3, h, w) in −1 to 1, h and w multiples of 32, to nine tensors: for strides 8, 16, 32 scores
    (n, cells · 2, 1), then distances to a box's sides (…, 4), then five key points (…, 10), in strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, 12, 2), _convolution(12, 24, 2), _convolution(24, 32, 2), _Residual(32, 1)
        )
        self.middle = nn.Sequential(_convolution(32, 48, 2), _Residual(48))
        self.top = nn.Sequential(_convolution(48, 48, 2), _Residual(48, 1))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in (32, 48, 48))
        self.smooth = nn.ModuleList(_convolution(32, 32) for _ in STRIDES)
        self.heads = nn.ModuleList(nn.Conv2d(32, ANCHORS * 15, 1) for _ in STRIDES)
        for head in self.heads:
            bias = head.bias
            assert isinstance(bias, nn.Parameter)
            with torch.no_grad():
                # Initially no anchor is a face, as nearly none is.
                bias[:ANCHORS] = -4.0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(images)
        middle = self.middle(fine)
        levels = [side(features) for side, features in zip(self.lateral, (fine, middle, self.top(middle)), strict=True)]
        for place in (1, 0):
            levels[place] = levels[place] + F.interpolate(levels[place + 1], scale_factor=2.0, mode="nearest")
        scores, boxes, points = [], [], []
        for level, smooth, head in zip(levels, self.smooth, self.heads, strict=True):
            parts = head(smooth(level)).split((ANCHORS, ANCHORS * 4, ANCHORS * 10), dim=1)
            score, box, point = (part.permute(0, 2, 3, 1).flatten(1) for part in parts)
            scores.append(score.unflatten(1, (-1, 1)).sigmoid())
            boxes.append(2 * F.softplus(box.unflatten(1, (-1, 4))))
            points.append(2 * point.unflatten(1, (-1, 10)))
        return (*scores, *boxes, *points)


class SingleImageDetector(nn.Module):
    """The detector with the interface of `det_10g.onnx`: one image, and outputs without a batch dimension."""

    def __init__(self, model: FaceDetectorNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(output[0] for output in self.model(image))


class FaceRecognizerNet(nn.Module):
    """ArcFace's interface: (n, 3, 112, 112) in −1 to 1 to (n, 512), of which only the direction matters."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(
            _convolution(3, 16, 2),
            _convolution(16, 32, 2),
            _Residual(32, 1),
            _convolution(32, 48, 2),
            _Residual(48),
            _convolution(48, 80, 2),
            _Residual(80, 1),
            nn.Conv2d(80, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            # Each channel covers the whole face, as in MobileFaceNets (Chen et al. 2018).
            nn.Conv2d(128, 128, 7, groups=128, bias=False),
            nn.BatchNorm2d(128),
            nn.Flatten(),
        )
        self.embed = nn.Linear(128, EMBEDDING, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        return self.embed(self.see(faces))


class _Styled(nn.Module):
    """Two convolutions, whose channels are scaled and shifted by the source's face.

    With `even`, channels are normalised first: AdaIN (Huang and Belongie 2017).
    """

    def __init__(self, inputs: int, width: int, style_vector: int, even: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.InstanceNorm2d(width) if even else nn.Identity() for _ in range(2))
        self.style = nn.Linear(style_vector, 4 * width)
        self.same = inputs == width

    def forward(self, features: Tensor, style_vector: Tensor) -> Tensor:
        scale, move, scale_too, move_too = self.style(style_vector)[:, :, None, None].chunk(4, dim=1)
        painted = F.leaky_relu(self.norms[0](self.first(features)) * (1 + scale) + move, 0.1)
        painted = self.norms[1](self.second(painted)) * (1 + scale_too) + move_too
        return F.leaky_relu(features + painted if self.same else painted, 0.1)


class _Place(nn.Module):
    """Adds a learnt embedding of row and column to each pixel, zero at first."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.row, self.column = (
            nn.Parameter(torch.zeros(1, width, side, 1)),
            nn.Parameter(torch.zeros(1, width, 1, side)),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.row + self.column


class FaceSwapperNet(nn.Module):
    """inswapper's interface: (n, 3, 128, 128) in 0 to 1 and a mapped embedding (n, 512) to the swapped image.

    A coarse face is generated from the embedding in the image's pose, then refined; where the predicted opacity is
    0, the image stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1), nn.LeakyReLU(0.1))
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.LeakyReLU(0.1))
        self.third = nn.Sequential(nn.Conv2d(32, 64, 3, 2, padding=1), nn.LeakyReLU(0.1))
        style_vector = 56
        self.tell = nn.Sequential(nn.Linear(EMBEDDING, style_vector), nn.LeakyReLU(0.1))
        # Eyes and mouth have nearly constant positions in a crop; finer levels need them more exactly.
        self.place = nn.Parameter(torch.zeros(1, 64, SWAP_CROP // 8, SWAP_CROP // 8))
        self.finer_place, self.finest_place = _Place(32, SWAP_CROP // 4), _Place(16, SWAP_CROP // 2)
        self.coarse = nn.ModuleList(_Styled(64, 64, style_vector) for _ in range(2))
        self.narrow, self.middle = nn.Conv2d(64, 32, 1), _Styled(64, 32, style_vector)
        self.narrower, self.fine = nn.Conv2d(32, 16, 1), _Styled(32, 32, style_vector, even=False)
        self.paint = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        # The embedding has norm 1; its components should be about 1.
        style_vector = self.tell(source * math.sqrt(EMBEDDING))
        first = self.first(target * 2 - 1)
        second = self.second(first)
        features = self.third(second) + self.place
        for block in self.coarse:
            features = block(features, style_vector)
        features = self.finer_place(F.interpolate(self.narrow(features), scale_factor=2.0, mode="nearest"))
        features = self.middle(torch.cat([features, second], dim=1), style_vector)
        features = self.finest_place(F.interpolate(self.narrower(features), scale_factor=2.0, mode="nearest"))
        colour, cover = self.paint(self.fine(torch.cat([features, first], dim=1), style_vector)).split((3, 1), dim=1)
        cover = cover.sigmoid()
        return colour.sigmoid() * cover + target * (1 - cover)
