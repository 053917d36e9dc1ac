"""A whole run on a folder of pictures: chosen by validation, tested once, put to use.

python FILE PICTURES trains on PICTURES/<class>/..., grey or colour (without PICTURES: digits),
once at each of RATES, and keeps the lowest validation loss in plain.pt. When all is chosen,
once: python FILE test PICTURES. New ones: python FILE predict NEW. Four GPUs in 16 bits: accelerate launch --num_processes 4
--mixed_precision bf16 FILE PICTURES. Two processes on a CPU: ACCELERATE_USE_CPU=yes
torchrun --standalone --nproc_per_node 2 FILE. The first line says how many train together."""

import copy
import math
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets.folder import ImageFolder, is_image_file
from torchvision.transforms.functional import pil_to_tensor, resize

SIZE, WIDTH, EPOCHS, SEED = 28, 8, 16, 0  # photographs: 64, 24, 100 or more
RATES = 0.01, 0.03, 0.1  # where the first or the last wins, try one beyond it


class Residual(nn.Sequential):  # x plus what its layers make of it
    def forward(self, x):
        return x + super().forward(x)


class Scaled(nn.Module):  # each channel to mean 0 and spread 1, in the batch alone
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def layer(width, out, stride=1):  # chapters 7 and 6; torch's own start: 5
    return [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out, 3, stride, padding=1)]


def network(channels, width, classes):
    wide = 2 * width
    layers = [Scaled(channels), nn.Conv2d(channels, width, 3, stride=2, padding=1)]
    layers += [Residual(*layer(width, width), *layer(width, width))]
    layers += layer(width, wide, stride=2)
    layers += [Residual(*layer(wide, wide), *layer(wide, wide))]
    layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(wide, classes))


def shifted(images):  # chapter 10
    side, most = images.shape[-1], images.shape[-1] // 8
    # photographs, mirrored too: images[::2] = images[::2].flip(3)
    padded = F.pad(images, [most] * 4, value=images.min().item())  # the batch's darkest
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # places: dimensions 2 and 3
    down, right = torch.randint(0, 2 * most + 1, (2, len(images)), device=images.device)
    return windows[torch.arange(len(images)), :, down, right]  # (n, channels, side, side)


def score(model, images, labels):  # mean loss and accuracy
    model.eval()  # batch norm by its running means
    device = next(model.parameters()).device
    with torch.no_grad():
        outputs = torch.cat([model(x.to(device)).cpu() for x in images.split(256)])
    right = (outputs.argmax(1) == labels).double()
    return F.cross_entropy(outputs, labels).item(), right.mean().item()


def plain_run(train, validation, width, epochs, seed, rate=0.01, model=None):
    """Train on (images, labels); return the network of the best epoch and its score."""
    accelerator = Accelerator()  # one process or many, CPU or GPU, 16 bits: 12, 15
    # other shifts on each process; the weights of process 0 go to all
    torch.manual_seed(seed + accelerator.process_index)
    images, labels = train
    if model is None:
        model = network(images.shape[1], width, int(labels.max()) + 1)
        some = images[:: max(1, len(images) // 1000)].float()  # of all classes
        model[0].mean.copy_(some.mean((0, 2, 3)).view(-1, 1, 1))
        model[0].std.copy_(some.std((0, 2, 3)).view(-1, 1, 1))
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)  # 2, 3
    share = 48 // accelerator.num_processes  # 48 pictures an update, on all together
    batches = DataLoader(TensorDataset(images, labels), share, shuffle=True)  # 16
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    steps = epochs * len(batches)  # after prepare: each process has its share
    warm = max(1, round(0.05 * steps))

    def factor(t):  # on the rate: up in a line (13), then down a cosine (8, 14)
        down = 0.5 + 0.5 * math.cos(math.pi * max(0, t - warm) / max(1, steps - warm))
        return min((t + 1) / warm, down)

    # not prepared: Accelerate would step it once for each process at each update
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    best = None
    for _ in range(epochs):
        model.train()
        for images, labels in batches:
            loss = F.cross_entropy(model(shifted(images)), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)  # chapter 4
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        whole = accelerator.unwrap_model(model)
        now = score(whole, *validation)
        if best is None or now[0] < best[0]:  # the lowest loss: chapter 3
            best, weights = now, copy.deepcopy(whole.state_dict())
    whole.load_state_dict(weights)
    return whole, best


def picture(file, size, channels=3):  # bytes from 0 to 255: (channels, size, size)
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)  # upright, as the camera was held
        image = image.convert("L" if channels == 1 else "RGB")
    return pil_to_tensor(resize(image, [size, size]))


def split_off(folds, rows, labels, groups):  # the rows but one fold, and that fold
    fold = StratifiedGroupKFold(folds, shuffle=True, random_state=0)  # of whole groups
    parts = next(fold.split(rows, labels[rows], [groups[row] for row in rows]))
    return [[rows[place] for place in part] for part in parts]


def read_folder(root, size):
    """Return train, validation and test of ROOT/<class>/..., and what new ones need."""
    folder = ImageFolder(root, loader=lambda file: picture(file, size))
    images, labels = torch.stack([x for x, _ in folder]), torch.tensor(folder.targets)
    if (images == images[:, :1]).all():  # grey: one channel says all
        images = images[:, :1]
    names = [Path(file).relative_to(root).as_posix() for file, _ in folder.samples]
    groups = names  # each alone; by camera1_: [Path(x).name.split("_")[0] for x in names]
    # the same split in every run: no test row ever trains (1)
    rest, test = split_off(4, range(len(names)), labels, groups)
    parts = *split_off(5, rest, labels, groups), test
    kept = {"size": size, "channels": images.shape[1], "classes": folder.classes}
    sums = [(name, zlib.crc32(Path(root, name).read_bytes())) for name in names]
    kept["files"] = [[sums[row] for row in part] for part in parts]
    return *[(images[part], labels[part]) for part in parts], kept


def name_of(file, model, kept):  # a new picture's class, and its probability
    with torch.no_grad():
        pixels = picture(file, kept["size"], kept["channels"])
        shares = model(pixels[None]).softmax(1)[0]
    return kept["classes"][shares.argmax()], shares.max().item()


accelerator, words = Accelerator(), sys.argv[1:] or ["digits"]
if not sys.argv[1:] and accelerator.is_main_process:  # scikit-learn's, as pictures
    images, labels = load_digits(return_X_y=True)
    for row in range(600):
        place = Path("digits", str(labels[row]))
        place.mkdir(parents=True, exist_ok=True)
        gray = (15 * images[row].reshape(8, 8)).astype("uint8")
        Image.fromarray(gray).save(place / f"{row:03}.png")
accelerator.wait_for_everyone()
if words[0] not in ("test", "predict"):
    accelerator.print("training together:", accelerator.num_processes, accelerator.device)
    train, validation, _, kept = read_folder(words[0], SIZE)
    best = None
    for rate in RATES:
        model, now = plain_run(train, validation, WIDTH, EPOCHS, SEED, rate)
        accelerator.print(f"rate {rate}: loss {now[0]:.4f}, accuracy {now[1]:.4f}")
        if best is None or now[0] < best[0]:  # on validation pictures: chapter 2
            best = now
            kept |= {"model": model.state_dict(), "width": WIDTH, "rate": rate}
    accelerator.save(kept, "plain.pt")
    accelerator.print(f"chosen: rate {kept['rate']}")
    loss, accuracy = best
    accelerator.print(f"validation accuracy {accuracy:.4f}, validation loss {loss:.4f}")
else:
    kept = torch.load("plain.pt", map_location="cpu")
    model = network(kept["channels"], kept["width"], len(kept["classes"]))
    model.eval().load_state_dict(kept["model"])
if words[0] == "test":
    *_, test, now = read_folder(words[1], kept["size"])
    if now["files"] != kept["files"]:  # names or bytes of files, or the split
        raise SystemExit("these are not the pictures of the training: train anew")
    accelerator.print(f"test accuracy {score(model, *test)[1]:.4f}")
if words[0] == "predict":
    for file in sorted(Path(words[1]).rglob("*")):
        if is_image_file(file.name):
            name, share = name_of(file, model, kept)
            accelerator.print(file, name, f"{share:.3f}")
accelerator.end_training()
