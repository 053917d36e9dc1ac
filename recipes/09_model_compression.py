"""Model compression with Accelerate: a trained network in 4 bits, in its file and while it runs.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. CPU, two:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.data import DataLoader, TensorDataset

WIDTH, SEED, FILE = 32, 0, "packed.safetensors"
BATCH, RATE, EPOCHS, TRAIN_ROWS = 64, 0.01, 4, 1472  # BATCH: of all processes together


class Packed(nn.Module):  # torch keeps what right_inverse returns, and uses forward of it
    def right_inverse(self, weight):  # -7 to 7 as 1 to 15, two in a byte; a scale a row
        self.shape, self.dtype = weight.shape, weight.dtype
        rows = weight.float().flatten(1)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 7
        whole = ((rows / scale).round() + 8).to(torch.uint8)
        whole = nn.functional.pad(whole, (0, whole.shape[1] % 2))  # to an even number
        return whole[:, 0::2] + 16 * whole[:, 1::2], scale

    def forward(self, packed, scale):  # the floats of one weight, while it is used
        whole = torch.stack([packed % 16, packed // 16], dim=2).flatten(1)
        whole = whole[:, : self.shape[1:].numel()].float() - 8
        return (whole * scale).view(self.shape).to(self.dtype)


def pack(model):  # in place, to run and not to train; the file is its state_dict
    for module in list(model.eval().requires_grad_(False).modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 1:  # of a linear layer, convolution, attention, embedding
                register_parametrization(module, name, Packed())
    return model


def new_model():  # stands for your network: attention over the rows of an image
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True)
    head = nn.Linear(8 * WIDTH, 10)
    return nn.Sequential(nn.Linear(8, WIDTH), layer, nn.Flatten(), head)


@torch.no_grad()
def look(model):  # accuracy on all test rows (in each process), and bytes
    right = model(images[TRAIN_ROWS:]).argmax(dim=1) == labels[TRAIN_ROWS:]
    return right.float().mean(), sum(w.nbytes for w in model.state_dict().values())


accelerator = Accelerator()
assert BATCH % accelerator.num_processes == 0, f"processes must divide {BATCH} rows"
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 8, 8).to(accelerator.device)
labels = torch.tensor(labels).to(accelerator.device)
rows = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
order = torch.Generator().manual_seed(SEED)
own = BATCH // accelerator.num_processes  # rows an update in each process
rows = DataLoader(rows, own, shuffle=True, generator=order)
torch.manual_seed(SEED)
model = new_model()
optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
model, optimizer, rows = accelerator.prepare(model, optimizer, rows)
for inputs, targets in (batch for _ in range(EPOCHS) for batch in rows):
    loss = nn.functional.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()

model = accelerator.unwrap_model(model).eval()
before, floats = look(model)
if accelerator.is_local_main_process:  # once on each machine
    save_file(pack(model).state_dict(), FILE)
accelerator.wait_for_everyone()
with torch.device("meta"):  # shapes without numbers: the floats are never in memory
    packed = pack(new_model())
packed.load_state_dict(load_file(FILE), assign=True)
after, held = look(packed.to(accelerator.device))
result = f"float {before:.4f}, float bytes {floats}, packed {after:.4f}"
accelerator.print(f"{result}, packed bytes {held}")
accelerator.end_training()
