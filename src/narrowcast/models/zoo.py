"""More small networks for 28x28 digits, so that a claim about many architectures can be tried on several kinds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallMlp(nn.Module):
    """Two hidden layers of 128: 118,282 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.up, self.middle, self.head = nn.Linear(784, 128), nn.Linear(128, 128), nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of digits ``[N, 1, 28, 28]``."""
        logits: Tensor = self.head(F.relu(self.middle(F.relu(self.up(x.flatten(1))))))
        return logits


class _Separable(nn.Module):
    """A 3x3 convolution per channel and a 1x1 convolution over channels, each normalised (Howard et al. 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.depthwise(x)))
        return F.relu6(self.norm2(self.pointwise(x)))


class SmallMobile(nn.Module):
    """A MobileNet of four separable convolutions, whose channels differ in range as those of its kind do."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.layers = nn.ModuleList(
            _Separable(a, b, s) for a, b, s in ((16, 32, 1), (32, 48, 2), (48, 64, 1), (64, 64, 2))
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]`` of digits ``[N, 1, 28, 28]``."""
        x = F.relu6(self.norm(self.stem(x)))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class SmallUnet(nn.Module):
    """A U-shaped net of pictures to pictures: two steps down, two up, sums across."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.down1, self.down2 = (
            nn.Conv2d(1, 16, 3, 1, 1),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.Conv2d(32, 64, 3, 2, 1),
        )
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(32), nn.BatchNorm2d(64), nn.BatchNorm2d(32)
        self.up2, self.up1, self.outlet = (
            nn.Conv2d(64, 32, 3, 1, 1),
            nn.Conv2d(32, 16, 3, 1, 1),
            nn.Conv2d(16, 1, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures ``[N, 1, 28, 28]``."""
        first = F.relu(self.inlet(x))
        second = F.relu(self.norm1(self.down1(first)))
        third = F.relu(self.norm2(self.down2(second)))
        y = F.relu(self.norm3(self.up2(F.interpolate(third, scale_factor=2.0)))) + second
        y = F.relu(self.up1(F.interpolate(y, scale_factor=2.0))) + first
        found: Tensor = self.outlet(y)
        return found


def fit_denoiser(model: nn.Module, pixels: Tensor, *, steps: int, noise: float = 0.5, seed: int = 0) -> None:
    """Train ``model`` to take normal noise off ``pixels`` ``[count, 1, 28, 28]``; leave it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        clean = pixels[torch.randint(len(pixels), (64,), generator=generator)]
        noisy = clean + noise * torch.randn(clean.shape, generator=generator)
        loss = (model(noisy) - clean).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()
