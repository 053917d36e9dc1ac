"""Model compression with Accelerate: train, distil, round to 4 bits, save, load, evaluate.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. CPU, two:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import os

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, RATE, EPOCHS = 64, 0.1, 10  # BATCH: rows an update, on all processes together
TRAIN_ROWS = 1472  # whole batches: Accelerate fills a short one with repeated rows
TEACHER, STUDENT, T = 128, 16, 4.0  # hidden units; and how soft the teacher's answers are
SEEDS, FILE = (0, 1, 2), "student.safetensors"  # printed accuracies are means over SEEDS

accelerator = Accelerator()
assert BATCH % accelerator.num_processes == 0, f"processes must divide {BATCH} rows"
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
test = accelerator.prepare(test)


def new_model(width):  # the 4 bits below want an even number of inputs and of units
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def train(width, targets, temperature, seed):  # targets: labels, or probabilities
    torch.manual_seed(seed)
    model = new_model(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    rows, order = TensorDataset(images[:TRAIN_ROWS], targets), torch.Generator()
    own = BATCH // accelerator.num_processes  # rows an update in each process
    batches = DataLoader(rows, own, shuffle=True, generator=order.manual_seed(seed))
    wrapped, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for _ in range(EPOCHS):
        for inputs, wanted in batches:
            outputs = wrapped(inputs).float() / temperature
            loss = temperature**2 * F.cross_entropy(outputs, wanted)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    return accelerator.unwrap_model(wrapped).eval()


@torch.no_grad()
def accuracy(model):
    pairs = [accelerator.gather_for_metrics((model(x).argmax(1), y)) for x, y in test]
    return torch.cat([found == wanted for found, wanted in pairs]).float().mean()


def save_4_bits(model, file):
    tensors = model.state_dict()
    for name, weight in list(tensors.items()):
        if weight.ndim == 2:
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 7  # a row
            whole = ((weight / scale).round() + 8).to(torch.uint8)  # 1 to 15
            tensors[name] = whole[:, 0::2] + 16 * whole[:, 1::2]  # two numbers a byte
            tensors[f"{name}.scale"] = scale
    save_file(tensors, file)


def load_4_bits(model, file):
    tensors = load_file(file)
    for name in [name for name in tensors if f"{name}.scale" in tensors]:
        whole = torch.stack([tensors[name] % 16, tensors[name] // 16], dim=2).flatten(1)
        tensors[name] = (whole.float() - 8) * tensors.pop(f"{name}.scale")
    model.load_state_dict(tensors)
    return model.to(accelerator.device).eval()


results = []
for seed in SEEDS:
    teacher = train(TEACHER, labels[:TRAIN_ROWS], 1.0, seed)
    with torch.no_grad():  # the teacher does not learn any more
        answers = teacher(images[:TRAIN_ROWS].to(accelerator.device)) / T
    student = train(STUDENT, answers.softmax(1).cpu(), T, seed)  # it sees no label
    alone = train(
        STUDENT, labels[:TRAIN_ROWS], 1.0, seed
    )  # the rival: it sees no teacher
    if accelerator.is_main_process:
        save_4_bits(student, FILE)
    accelerator.wait_for_everyone()
    loaded = load_4_bits(new_model(STUDENT), FILE)  # several machines: FILE seen by all
    results.append([accuracy(model) for model in (teacher, alone, student, loaded)])

means = torch.tensor(results).mean(dim=0).tolist()
line = "teacher {:.4f}, alone {:.4f}, student {:.4f}, loaded {:.4f}".format(*means)
accelerator.print(f"{line}, bytes {os.path.getsize(FILE)}")
accelerator.end_training()
