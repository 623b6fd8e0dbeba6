"""A training script of EasyRobust's shape, with what breaks its scripts today: for GPUs alone, on old names."""

import argparse
import logging
import os
from tkinter.ttk import Style  # noqa: F401
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn
import yaml
from easyrobust.datasets import ImageNetDataset
from timm.models import create_model, resume_checkpoint
from timm.scheduler import create_scheduler
from timm.utils import CheckpointSaver, ModelEmaV2, NativeScaler, setup_default_logging
from torch.nn.parallel import DistributedDataParallel
from torch.utils import model_zoo
from torchvision import transforms

config_parser = parser = argparse.ArgumentParser(add_help=False)
parser.add_argument("-c", "--config", default="")
parser = argparse.ArgumentParser(description="a script of EasyRobust's shape")
for flag, default in {"data_dir": "", "model": "", "output": "", "resume": "", "fetch": "", "sched": "cosine"}.items():
    parser.add_argument(f"--{flag}", default=default)
parser.add_argument("--initial-checkpoint", default="")
parser.add_argument("--model-ema", action="store_true")
parser.add_argument("--aug-repeats", type=int, default=0)  # --aug must not be taken for it
parser.add_argument("--decay-milestones", type=int, nargs="+", default=[1])
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("-j", "--workers", type=int, default=4)
parser.add_argument("--amp", action="store_true")
parser.add_argument("--local_rank", default=0, type=int)
FIXED = {"num_classes": 10, "seed": 1, "log_interval": 1, "lr": 0.01, "min_lr": 0.0, "warmup_lr": 0.0,
         "warmup_epochs": 0, "cooldown_epochs": 0, "decay_rate": 0.5, "decay_epochs": 1.0}  # fmt: skip
parser.set_defaults(**FIXED)
_logger = logging.getLogger("script")


def main():
    setup_default_logging()
    config, remaining = config_parser.parse_known_args()
    if config.config:
        with open(config.config) as stream:
            parser.set_defaults(**yaml.safe_load(stream))
    args = parser.parse_args(remaining)
    args.distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if args.distributed:
        args.local_rank = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(args.local_rank)
        torch.distributed.init_process_group(backend="nccl", init_method="env://")
    torch.manual_seed(args.seed)
    model = create_model(args.model, num_classes=args.num_classes, checkpoint_path=args.initial_checkpoint)
    model.cuda()
    if args.model_ema:
        _logger.info("start: raw %.9f, average %.9f", squares(model), squares(ModelEmaV2(model, decay=0.9).module))
    if args.fetch:
        model.load_state_dict(model_zoo.load_url(args.fetch)["state_dict"])
    optimizer = torch.optim.SGD(model.parameters(), args.lr)
    if args.resume:
        _logger.info("resumed at %s", resume_checkpoint(model, args.resume))
    if args.distributed:
        model = DistributedDataParallel(model, device_ids=[args.local_rank])
    scheduler, epochs = create_scheduler(args, optimizer)
    transform = transforms.Compose([transforms.RandomSizedCrop(32), transforms.ToTensor()])
    dataset = ImageNetDataset(args.data_dir, split="train", transform=transform)
    dataset._indices = dataset._indices[:: int(np.int_(len(dataset) // 36))]
    sampler = torch.utils.data.distributed.DistributedSampler(dataset) if args.distributed else None
    loader = torch.utils.data.DataLoader(
        dataset, 6, sampler=sampler, drop_last=True, num_workers=args.workers, persistent_workers=True
    )
    scaler = NativeScaler() if args.amp else None
    for epoch in range(epochs):
        train_one_epoch(epoch, model, loader, optimizer, nn.CrossEntropyLoss().cuda(), args, loss_scaler=scaler)
        scheduler.step(epoch + 1)
        _logger.info("epoch %d: lr %g", epoch, optimizer.param_groups[0]["lr"])
    if args.local_rank == 0:
        saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=args.output, recovery_dir=args.output)
        saver.save_checkpoint(epochs - 1, metric=1.0)
        with open(os.path.join(args.output, "args.yaml"), "w") as stream:
            yaml.safe_dump(vars(args), stream)


def squares(model):
    return sum(float(p.detach().double().square().sum()) for p in model.parameters())


def train_one_epoch(epoch, model, loader, optimizer, loss_fn, args, loss_scaler=None):
    autocast = torch.cuda.amp.autocast if args.amp else lambda: torch.autocast("cpu", enabled=False)
    model.train()
    meter = SimpleNamespace(total=0.0)
    for input, target in loader:
        input, target = input.cuda(), target.to("cuda:0")
        with autocast():
            output = model(input)
            loss = loss_fn(output, target)
        meter.total += loss.item()
        optimizer.zero_grad()
        if loss_scaler is not None:
            loss_scaler(loss, optimizer, parameters=model.parameters())
        else:
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        _logger.info("output of %s, weights %.9f", output.dtype, squares(model))
    return {"loss": meter.total}


if __name__ == "__main__":
    raise RuntimeError("the launcher calls main itself")
