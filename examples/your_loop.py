"""Nullspace noise in a training loop of one's own: a timm model, one's own classes, and one line more.

    python examples/your_loop.py PHOTOS [MODEL] [EPOCHS]

PHOTOS holds train/ and val/, each with one folder a class. MODEL is a name of timm's, by default vit_tiny_patch16_224;
its ImageNet weights are downloaded once, and its head is new. WEIGHTS=none in the environment starts from random ones.
It runs on a CPU too.
"""

import os
import sys

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ns_easyrobust import NoiseConfig, NullspaceAugmentation, measure


def main(photos: str, model_name: str = "vit_tiny_patch16_224", epochs: str = "3") -> float:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classes = sorted(entry.name for entry in os.scandir(f"{photos}/train") if entry.is_dir())
    pretrained = os.environ.get("WEIGHTS") != "none"
    model = timm.create_model(model_name, pretrained=pretrained, num_classes=len(classes)).to(device)

    # Nothing here is ours: your transforms, your loaders, your optimizer.
    config = timm.data.resolve_data_config({}, model=model)
    size, normalize = config["input_size"][-1], transforms.Normalize(config["mean"], config["std"])
    augmented = [transforms.RandomResizedCrop(size, (0.5, 1)), transforms.RandomHorizontalFlip()]
    plain = [transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size)]
    train, val = (
        datasets.ImageFolder(f"{photos}/{split}", transforms.Compose([*steps, transforms.ToTensor(), normalize]))
        for split, steps in (("train", augmented), ("val", plain))
    )
    train_loader = DataLoader(train, batch_size=16, shuffle=True, drop_last=True)
    val_loader = DataLoader(val, batch_size=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.05)
    loss_fn = nn.CrossEntropyLoss()

    # A noise is searched for at the first step and after every `interval` steps, on images that a loader of its own
    # reads. The paper has interval=40 and max_steps=3000; 100 are for a first look.
    ns = NullspaceAugmentation(model, train_loader, NoiseConfig(max_steps=100), interval=40)

    for epoch in range(int(epochs)):
        model.train()
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            loss = loss_fn(model(images), labels)
            loss = loss + ns.loss(images, labels, loss_fn)  # <- the one line; backward runs once, on the sum
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        model.eval()
        with torch.no_grad():
            right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in val_loader)
        assert ns.noise is not None
        found = measure(model, val_loader, ns.noise.value)  # what the noise does to the model as it is now
        print(
            f"epoch {epoch}: {right}/{len(val)} right; noise of norm {ns.noise.norm:.1f}: mse_probability "
            f"{found.mse_probability:.3f}, {found.agreement:.0%} of answers as without it"
        )
    torch.save(model.state_dict(), "model.pth")
    return right / len(val)


if __name__ == "__main__":
    main(*sys.argv[1:])
