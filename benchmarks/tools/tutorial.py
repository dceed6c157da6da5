"""The loop of PyTorch's spatial transformer tutorial, as a baseline for ours.

Source: G. Hamrouni, "Spatial Transformer Networks Tutorial", pytorch/tutorials,
``intermediate_source/spatial_transformer_tutorial.py``. Kept: torchvision transforms on PIL images, a DataLoader with
batches of 64, shuffled, and 4 workers that start anew for every pass, SGD at 0.01, eager steps on NCHW tensors, and a
test pass in the same batches after each epoch. Changed: images are RGB and normalised as ours are, the network is ours
(the tutorial's layers with three input channels), and the loss is read at every step rather than every 500th, as
loops with a running loss do.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils import data
from torchvision import transforms

from stn_export.train.data import Dataset, Split
from stn_export.train.networks import build_model
from stn_export.train.recipes import MEAN, STD

BATCH = 64
WORKERS = 4
LEARNING_RATE = 0.01


class Pictures(data.Dataset):
    """A split in the form of torchvision's CIFAR10: pixels that become a PIL image, then a tensor, on access."""

    def __init__(self, split: Split) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).cpu().numpy()  # N×32×32×3
        self.labels = split.labels.tolist()
        normalise = transforms.Normalize((MEAN,) * 3, (STD,) * 3)
        self.transform = transforms.Compose([transforms.ToTensor(), normalise])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


class Tutorial:
    """The tutorial's model, loaders and optimiser; each call is one of its epochs."""

    def __init__(self, model: str, dataset: Dataset, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model: nn.Module = build_model(model).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        self.train_loader, self.test_loader = (
            data.DataLoader(Pictures(split), batch_size=BATCH, shuffle=True, num_workers=WORKERS)
            for split in (dataset.train, dataset.test)
        )
        self.losses: list[float] = []

    def __call__(self) -> float:
        """Train for an epoch, then test; return the test accuracy in [0, 1]."""
        if self.device.type == "cuda":  # PyTorch's defaults, which our trainers change
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
        self.train()
        return self.test()

    def train(self) -> None:
        """Train one epoch, one step per batch; ``losses`` are those of the epoch."""
        self.model.train()
        self.losses = []
        for images, labels in self.train_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = F.nll_loss(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def test(self) -> float:
        """Return the accuracy on the test split; its loss is summed as in the tutorial, and discarded."""
        self.model.eval()
        loss, correct = 0.0, 0
        with torch.no_grad():
            for images, labels in self.test_loader:
                images, labels = images.to(self.device), labels.to(self.device)
                log_probs = self.model(images)
                loss += F.nll_loss(log_probs, labels, reduction="sum").item()
                predicted = log_probs.max(1, keepdim=True)[1]
                correct += predicted.eq(labels.view_as(predicted)).sum().item()
        return correct / len(self.test_loader.dataset)
