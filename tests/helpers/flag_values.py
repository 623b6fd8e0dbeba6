"""For every flag of every verb: a value that it takes with where it shows, and values that no sane run has.

Each verb's flags are listed in groups, each of which is one command line. What a flag must leave behind is written by
hand: for ``train`` the entry of args.yaml (by default the words as YAML reads them), for ``benchmark`` fields of a
record or of its protocol, for ``noise`` fields of the noise's config, for the others a text in what is printed.
"""

from __future__ import annotations

from typing import Any

import yaml

Shown = Any
Group = dict[str, str | tuple[str, Shown]]

# {few}: a small image folder; {bench}: a benchmark folder; {ckpt}: a checkpoint with EMA; {out}: a new folder;
# {recipe}: a YAML file with "epochs: 1"; {records}: a results file; {noise}: a saved noise; {sha}: the checkpoint's.
TRAIN: list[Group] = [
    {
        "--config": ("{recipe}", None),
        "--mean": "0.4 0.5 0.6",
        "--std": "0.2 0.3 0.4",
        "--device": "cpu",
        "--seed": "4294967295",
        "--train-split": "train",
        "--val-split": ("validation", "val"),
        "--validation-batch-size": "5",
        "--img-size": "32",
        "--crop-pct": "0.9",
        "--interpolation": "bilinear",
        "--bad-images": "replace",
        "--pin-mem": ("", True),
        "--opt": "sgd",
        "--momentum": "0.8",
        "--weight-decay": "0.1",
        "--decay-tokens": ("", True),
        "--clip-grad": "1.5",
        "--clip-mode": "value",
        "--grad-accum-steps": "2",
        "--sam-rho": "0.05",
        "--sam-adaptive": ("", True),
        "--sched": "step",
        "--lr": "0.002",
        "--min-lr": "0.0001",
        "--warmup-lr": "0.001",
        "--warmup-epochs": "1",
        "--cooldown-epochs": "1",
        "--decay-epochs": "2.5",
        "--decay-rate": "0.5",
        "--epochs": "2",
        "--epoch-steps": "1",
        "--recovery-interval": "1",
        "--keep-interval": "1",
        "--log-interval": "1",
        "--val-interval": "2",
        "--select": "val",
        "--output": "{out}",
        "--experiment": "walk",
        "--aug": "madry,trades",
        "--madry-epsilon": ("4/255", 4 / 255),
        "--madry-steps": "2",
        "--madry-step-size": "0.01",
        "--madry-beta": "0.5",
        "--madry-random-start": ("", True),
        "--madry-best": ("", True),
        "--trades-epsilon": "0.031",
        "--trades-steps": "2",
        "--trades-step-size": "0.007",
        "--trades-beta": "6.0",
        "--trades-form": "original",
        "--trades-noise": "0.002",
        "--trades-detach": ("", True),
    },
    {
        "--aug": "nullspace",
        "--ns-interval": "2",
        "--ns-warm-start": ("", True),
        "--ns-limit": "2.5",
        "--ns-lr": "0.2",
        "--ns-eps": "0.04",
        "--ns-max-steps": "3",
        "--ns-weight-decay": "0.02",
        "--ns-cosine-steps": "3",
        "--ns-solver": "paper",
        "--ns-minibatch": "4",
        "--ns-pool": "2",
        "--ns-reuse": "2",
        "--ns-autocast": "bfloat16",
        "--ns-block": "1",
        "--ns-bank": "2",
        "--ns-loss": "kl",
        "--resume": "auto",
        "--max-steps": "3",
        "--initial-checkpoint": ("{ckpt}", "{ckpt}"),
        "--opt-eps": "0.001",
        "--opt-betas": "0.8 0.9",
        "--model-ema": ("", True),
        "--model-ema-decay": "0.5",
        "--amp": ("", True),
        "--amp-dtype": "bfloat16",
        "--channels-last": ("", True),
        "--holdout": "0.2",
        "--scale": "0.5 0.9",
        "--ratio": "0.9 1.1",
        "--hflip": "0.3",
        "--vflip": "0.2",
        "--color-jitter": "0.1",
        "--train-interpolation": "bicubic",
        "--reprob": "0.5",
        "--remode": "const",
        "--recount": "2",
        "--erase-outside": ("", True),
    },
    {
        "--aug": "random",
        "--ns-solver": "sphere",
        "--ns-turn": "0.1",
        "--ns-patience": "3",
        "--ns-max-steps": "2",
        "--ns-fresh": ("", True),
        "--ns-eps-growth": "1.5",
        "--ns-valid-pixels": ("", True),
        "--aa": "rand-m9-mstd0.5-inc1",
        "--mixup": "0.5",
        "--cutmix": "0.5",
        "--mixup-prob": "0.9",
        "--mixup-switch-prob": "0.4",
        "--mixup-mode": "elem",
        "--mixup-off-epoch": "1",
        "--smoothing": "0.1",
        "--drop": "0.1",
        "--drop-path": "0.1",
        "--log-tensorboard": ("", True),
        "--wandb-project": "walk",
        "--log-wandb": None,  # needs an account
        "--pretrained": None,  # downloads
    },
    {
        "--no-aug": ("", True),
        "--aug": "madry,negative-patches,pixel-noise",
        "--madry-alone": ("", True),
        "--pixel-noise-sigma": "0.3",
        "--pixel-noise-uniform-sigma": ("", True),
        "--negative-transform": "infill",
        "--negative-loss": "contrastive",
        "--negative-weight": "0.5",
        "--negative-multiple": "2",
        "--negative-patch-size": "4",
        "--negative-rate": "0.375",
        "--negative-temperature": "0.2",
        "--cutmix-minmax": "0.2 0.8",
        "--dataset": "torch/image_folder",
        "--dataset-download": ("", True),  # that set has nothing to download
        "--input-key": None,  # of a set that needs timm 1.x and Hugging Face's datasets
        "--target-key": None,
        "--model-kwargs": ("depth=2 mlp_ratio=2.0", {"depth": 2, "mlp_ratio": 2.0}),
    },
    {
        "--aug": "relevance",
        "--relevance-images": ("{few}/train", "{few}/train"),
        "--relevance-masks": None,  # of these images there are none; a test of the method's own reads some
        "--relevance-cache": ("{out}/cut", "{out}/cut"),
        "--relevance-tau": "0.1",
        "--relevance-per-class": "1",
        "--relevance-classes": "2",
        "--relevance-lambda-seg": "0.7",
        "--relevance-lambda-acc": "0.3",
        "--relevance-lambda-background": "1.5",
        "--relevance-lambda-foreground": "0.4",
        "--relevance-temperature": "0.65",
        "--relevance-true-labels": ("", True),
        "--relevance-keep-clean": ("", True),
    },
    {
        "--aa": "augmix-m1-w2",
        "--augmix-ops": "published",
        "--aug-splits": "3",
        "--jsd-loss": ("", True),
        "--reprob": "0.5",
        "--resplit": ("", True),
    },
]

BENCHMARK: list[Group] = [
    {
        "--mean": None,  # this checkpoint has its own, and so has each that shows in a record
        "--std": None,
        "--device": ("cpu", {}),
        "--seed": ("7", {}),
        "--sha256": ("{sha}", {"checkpoint_sha256": "{sha}"}),
        "--use-ema": ("", {"ema": True, "weights": "state_dict_ema"}),
        "--img-size": ("32", {"protocol.crop": 32}),
        "--crop-pct": ("0.8", {"protocol.resize": 40, "protocol.preset": "custom"}),
        "--interpolation": ("bilinear", {"protocol.interpolation": "bilinear"}),
        "--batch-size": ("5", {"protocol.batch_size": 5}),
        "--suite": ("val fgsm", {"suite": "fgsm"}),
        "--protocol": ("easyrobust", {}),
        "--subset": ("random:6:1", {"n": 6, "protocol.subset": "random:6:1"}),
        "--dtype": ("bfloat16", {"protocol.dtype": "bfloat16"}),
        "--again": ("", {}),
        "--label": ("mine", {"label": "mine"}),
        "--epsilon": ("2/255", {"protocol.epsilon": 2 / 255}),
    },
    {
        "--suite": ("pgd", {}),
        "--seed": ("7", {"seed": 7}),  # of the random start
        "--input-size": ("32", {"protocol.crop": 32}),
        "--protocol": ("native", {"protocol.preset": "native"}),
        "--pgd-epsilon": ("0.01", {"protocol.epsilon": 0.01}),
        "--pgd-steps": ("2", {"protocol.steps": 2}),
    },
    {
        "--suite": ("cw", {}),
        "--cw-radius": ("0.25", {"protocol.radius": 0.25}),
        "--cw-c": ("2", {"protocol.c": 2}),
        "--cw-kappa": ("0.5", {"protocol.kappa": 0.5}),
        "--cw-steps": ("2", {"protocol.steps": 2}),
        "--cw-lr": ("0.02", {"protocol.lr": 0.02}),
    },
    {
        "--adv": ("", {"suite": "autoattack"}),
        "--model-kwargs": ("depth=3", {"protocol.model_kwargs": {"depth": 3}}),
        "--subset": ("random:2", {}),
        "--autoattack-norm": ("L2", {"protocol.norm": "l2"}),
        "--autoattack-epsilon": ("0.5", {"protocol.epsilon": 0.5}),
    },
    {
        "--suite": ("patchfool", {}),
        "--patchfool-patches": ("2", {"protocol.patches": 2}),
        "--patchfool-select": ("saliency", {"protocol.select": "saliency"}),
        "--patchfool-layer": ("1", {"protocol.layer": 1}),
        "--patchfool-loss": ("ce", {"protocol.loss": "ce"}),
        "--patchfool-alpha": ("0.01", {"protocol.alpha": 0.01}),
        "--patchfool-mode": ("exact", {"protocol.mode": "exact"}),
        "--patchfool-norm": ("linf", {"protocol.norm": "linf"}),
        "--patchfool-epsilon": ("8/255", {"protocol.epsilon": 8 / 255}),
        "--patchfool-steps": ("2", {"protocol.steps": 2}),
        "--patchfool-lr": ("0.1", {"protocol.lr": 0.1}),
        "--patchfool-decay-steps": ("5", {"protocol.decay_steps": 5}),
        "--patchfool-decay": ("0.9", {"protocol.decay": 0.9}),
    },
]

NOISE: list[Group] = [
    {
        "--mean": None,  # as for benchmark
        "--std": None,
        "--device": ("cpu", {}),
        "--seed": ("7", {}),
        "--sha256": ("{sha}", {}),
        "--use-ema": ("", {}),
        "--img-size": ("32", {}),
        "--crop-pct": ("0.9", {}),
        "--interpolation": ("bilinear", {}),
        "--ns-limit": ("2.5", {"limit": 2.5}),
        "--ns-lr": ("0.2", {"lr": 0.2}),
        "--ns-eps": ("0.00001", {"eps": 0.00001}),
        "--ns-max-steps": ("2", {"max_steps": 2}),
        "--ns-weight-decay": ("0.02", {"weight_decay": 0.02}),
        "--ns-cosine-steps": ("2", {"cosine_steps": 2}),
        "--ns-solver": ("paper", {"solver": "paper"}),
        "--ns-minibatch": ("4", {"minibatch": 4}),
        "--ns-pool": ("2", {"pool": 2}),
        "--ns-reuse": ("2", {"reuse": 2}),
        "--ns-autocast": ("bfloat16", {"autocast": "bfloat16"}),
        "--ns-block": ("1", {"block": 1}),
        "--batch-size": ("8", {}),
        "--held-out": ("6", {"held_out.n": 6}),
        "--output": ("{out}/n.pt", {}),
    },
    {
        "--input-size": ("32", {}),
        "--model-kwargs": ("depth=3", {}),
        "--start": ("{noise}", {}),
        "--output": ("{noise}", {}),
        "--overwrite": ("", {}),
        "--ns-solver": ("sphere", {"solver": "sphere"}),
        "--ns-turn": ("0.1", {"turn": 0.1}),
        "--ns-patience": ("3", {"patience": 3}),
        "--ns-max-steps": ("2", {"max_steps": 2}),
    },
]

# Verb: its command, with what must stand in what it prints or writes.
OTHERS: dict[str, list[tuple[str, str]]] = {
    "doctor": [
        ("{bench} --suite val --images 3 --num-classes 10 --workers 0", "imagenet-val"),
        ("{bench} --suite val --images all --num-classes 10 -j 1", "imagenet-val"),
    ],
    "corrupt": [
        (
            "{few}/val {out}/imagenet-c --corruption pixelate extra --severity 5 2 --size 24 --crop-pct 0.8 --seed 7 "
            "--quality 70 --bad-images skip --workers 1",
            "wrote 200 images",
        ),
        ("{few}/val {out}/c --corruption frost --severity 1 --format png --frost-dir {frost} --workers 0", "20 images"),
    ],
    "report": [
        (
            "{records} --baseline one --best --published table2 --preset easyrobust --output {out} --row one "
            "--submit {out}/submit.json --leaderboard adversarial --robustbench {out}/robustbench.json --about {about}",
            "baseline",
        )
    ],
    "nullspace": [
        ("{ckpt} --ema --space pixel --rtol 0.001 --csv {out}/table.csv", "pixel"),
        ("{ckpt} --csv {out}/table.csv --overwrite", "normalised"),
        ("vit_micro_patch8_32 --model-kwargs patch_size=4", "       4 "),
    ],
    "export": [
        ("{ckpt} --layout timm --output {out}/a.pth --model vit_micro_patch8_32 --model-kwargs depth=3", "timm"),
        ("{bare} --layout easyrobust --mean 0.4 0.5 0.6 --std 0.2 0.3 0.4 --output {out}/a.pth --overwrite", "0.4"),
    ],
    "fingerprint": [  # more in tests/cli/test_fingerprint.py: flags belong to make and compare
        ("make {ckpt} -o {out}/f.safetensors", "dimension 64 of 192"),
        ("compare {ckpt} {bare}", "one origin"),
    ],
    "launch": [],  # its flags are the script's: tests/integration/test_launch.py
    "demo": [],  # tests/cli/test_demo.py
}
NOT_WALKED = {"nullspace --pretrained"}  # downloads


def expected(value: str | tuple[str, Shown]) -> tuple[list[str], Shown]:
    """A flag's words, and what args.yaml must hold."""
    if isinstance(value, tuple):
        return value[0].split(), value[1]
    words = value.split()
    read = [yaml.safe_load(word) for word in words]
    return words, read if len(read) > 1 else read[0]


# Values that no sane run has, for every flag of the kind; each ends in exit code 2 and one line, or is taken.
HOSTILE = {
    "number": ["", "x", "nan", "inf", "-1", "1e999", "1/0", "1e38", "9" * 400, "0x10", "1,5", "٣", "-1e-300"],
    "whole number": ["", "x", "nan", "-1", "0", "1.5", "9" * 5000, "1e3", "99999999999999999999", "4294967296"],
    "choice": ["", "x", "None", "NULLSPACE"],
    "path": [
        "",
        "\0",
        "/dev/null/x",
        "/proc/1/mem",
        "n" * 300,
        "a/" * 2500,
        "~nobody-of-that-name/x",
        "\udcff",
        "{fifo}",
        "{loop}",
        "{locked}/x",
        "{few}",
        "/dev/full",
    ],
    "text": ["", "\0", "\x1b[2J", "n" * 100_000, "\udcff", "$(touch ran)", "../../x", "=1+1", "\u202e"],
}
