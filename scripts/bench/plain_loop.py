"""CS-KD as it is often written, for end_to_end.py to compare with; written from the method's description.

A folder of images, Pillow, float tensors from the workers; a list of images for each class, pairs drawn in Python; two
forwards per step; three numbers read from the device at every step.

    python scripts/bench/plain_loop.py FOLDER MODEL BATCH WORKERS EPOCHS

Prints for each epoch: seconds, seconds spent waiting for data, anchors.
"""

from __future__ import annotations

import json
import sys
import time

import timm
import tiny_network  # noqa: F401  (registers)
import torch
import torch.nn.functional as F
from others import ListOfListsPairs
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def main() -> None:
    folder, model_name, batch_size, workers, epochs = sys.argv[1:]
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = ImageFolder(folder, transform)
    # Persistent workers: restarting them would slow down these short epochs.
    loader = DataLoader(
        dataset,
        batch_sampler=ListOfListsPairs(dataset.targets, int(batch_size)),
        num_workers=int(workers),
        persistent_workers=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(model_name, num_classes=len(dataset.classes)).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    total_loss = total_kd = correct = 0.0
    for _ in range(int(epochs)):
        batches = iter(loader)
        start, waited, anchors = time.perf_counter(), 0.0, 0
        while True:
            request = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - request
            if batch is None:
                break
            images, target = (part.to(device) for part in batch)
            (x, partner), target = images.chunk(2), target.chunk(2)[0]
            output = model(x)
            with torch.no_grad():
                teacher = model(partner)
            loss = F.cross_entropy(output, target)
            kd = F.kl_div(F.log_softmax(output / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16
            optimizer.zero_grad()
            (loss + kd).backward()
            optimizer.step()
            total_loss += loss.item()
            total_kd += kd.item()
            correct += (output.argmax(1) == target).sum().item()
            anchors += len(target)
        print(json.dumps([time.perf_counter() - start, waited, anchors]), flush=True)


if __name__ == "__main__":
    main()
