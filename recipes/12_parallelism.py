"""FSDP2 (ZeRO stage 3): each process keeps its part of weights, gradients, Adam's state.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset, TensorDataset

WIDTH, HEADS, LAYERS = 32, 4, 2
RATE, MAX_NORM, EPOCHS, SEED = 0.003, 1.0, 3, 0
BATCH, TRAIN_ROWS = 64, 1472  # BATCH: rows an update, of all processes together
RECOMPUTE = False  # True: a block keeps its input alone, and computes the rest again
FOLDER = Path("sharded")  # of the checkpoints; delete it to begin anew

loading = {"split_batches": True, "use_seedable_sampler": True, "data_seed": SEED}
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**loading))
if not dist.is_initialized():  # one process: a group of one, so that the rest is the same
    backend = "nccl" if accelerator.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
POLICY = MixedPrecisionPolicy()
if accelerator.device.type == "cuda":  # weights are gathered, and used, in 16 bits
    full = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}
    POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, **full)
torch.manual_seed(SEED)  # the same start on all processes
blocks = [
    nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True)
    for _ in range(LAYERS)
]
first, last = nn.Linear(8, WIDTH), nn.Linear(8 * WIDTH, 10)
model = nn.Sequential(first, *blocks, nn.Flatten(), last)
size = sum(p.numel() for p in model.parameters())
if RECOMPUTE:
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
for part in (*blocks, model):  # each block goes to the GPU and is cut, then the rest
    fully_shard(part, mp_policy=POLICY)
kept = sum(p.to_local().numel() for p in model.parameters())
accelerator.print(f"the first process keeps {kept} of {size} weights")
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, foreach=True)  # not one by one
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 8, 8)  # a row of pixels is a token
rows = TensorDataset(images, torch.tensor(labels))
train = DataLoader(Subset(rows, range(TRAIN_ROWS)), BATCH, shuffle=True, drop_last=True)
test = DataLoader(Subset(rows, range(TRAIN_ROWS, len(rows))), 64)
train, test = accelerator.prepare(train, test)  # neither the model nor the optimizer

done = max((int(path.parent.name) for path in FOLDER.glob("*/.metadata")), default=0)
if done:  # saved by any number of processes: each reads the parts that it keeps now
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=FOLDER / f"{done}")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
for epoch in range(done, EPOCHS):
    train.set_epoch(epoch)  # the order of this epoch, also after a resume
    torch.manual_seed(1000 * epoch + accelerator.process_index)  # its own dropout
    model.train()
    for inputs, targets in train:
        F.cross_entropy(model(inputs), targets).backward()  # gradients are averaged here
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)  # the norm of all parts
        optimizer.step()
        optimizer.zero_grad()
    weights, state = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": state}
    dcp.save(state, checkpoint_id=FOLDER / f"{epoch + 1}")  # each process its own parts

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.6f}")
accelerator.end_training()
