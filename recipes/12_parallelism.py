"""FSDP2 (ZeRO stage 3): each process keeps its part of weights, gradients, Adam's state.

One GPU: python FILE. Four: torchrun --standalone --nproc_per_node 4 FILE. Two on a CPU:
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
from torch.distributed.checkpoint import state_dict as sd
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset, TensorDataset

DIM, LAYERS = 32, 2
BLOCK = {"nhead": 4, "dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
RATE, MAX_NORM, EPOCHS, SEED = 0.003, 1.0, 3, 0
BATCH, TRAIN_ROWS = 64, 1472  # BATCH: rows an update, of all processes together
RECOMPUTE = False  # True: a block keeps its input alone, and computes the rest again
FOLDER = Path("sharded")  # checkpoints; a run goes on from the last that it finds here

loading = {"split_batches": True, "use_seedable_sampler": True, "data_seed": SEED}
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**loading))
gpu = accelerator.device.type == "cuda"
if not dist.is_initialized():  # one process: a group of one, so that the rest is the same
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
full = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}  # not 16 bits
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if gpu else None, **full)
torch.manual_seed(SEED)  # the first weights
first = accelerator.is_main_process  # it alone makes weights, in the CPU's memory
with torch.device("cpu" if first else "meta"):  # meta: shapes, which need no memory
    blocks = [nn.TransformerEncoderLayer(DIM, **BLOCK) for _ in range(LAYERS)]
    end = nn.Flatten(), nn.Linear(8 * DIM, 10)
    model = nn.Sequential(nn.Linear(8, DIM), *blocks, *end)
weights = model.state_dict() if first else {}  # or torch.load(your file, mmap=True)
model.to("meta")
for part in (*blocks, model):  # each block is cut, then the rest
    if RECOMPUTE and part is not model:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    fully_shard(part, mp_policy=policy)
model.to_empty(device=accelerator.device)  # memory for the parts that it keeps
options = sd.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
sd.set_model_state_dict(model, weights, options=options)  # all that state_dict() holds
kept = sum(p.to_local().numel() for p in model.parameters())
size = sum(p.numel() for p in model.parameters())
accelerator.print(f"the first process keeps {kept} of {size} weights")
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, foreach=True)  # after the cut
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 8, 8)  # a row of pixels is a token
rows = TensorDataset(images, torch.tensor(labels))
train = DataLoader(Subset(rows, range(TRAIN_ROWS)), BATCH, shuffle=True, drop_last=True)
test = DataLoader(Subset(rows, range(TRAIN_ROWS, len(rows))), 64)
train, test = accelerator.prepare(train, test)  # neither the model nor the optimizer

done = max((int(path.parent.name) for path in FOLDER.glob("*/.metadata")), default=0)
if done:  # saved by any number of processes: each reads the parts that it keeps now
    weights, state = sd.get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=FOLDER / f"{done}")
    sd.set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    accelerator.print(f"goes on after epoch {done} of {EPOCHS}; new run: delete {FOLDER}")
for epoch in range(done, EPOCHS):
    train.set_epoch(epoch)  # the order of this epoch, also after a resume
    torch.manual_seed(1000 * epoch + accelerator.process_index)  # its own dropout
    model.train()
    for inputs, targets in train:
        F.cross_entropy(model(inputs), targets).backward()  # gradients are averaged here
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)  # the norm of all parts
        optimizer.step()
        optimizer.zero_grad()
    weights, state = sd.get_state_dict(model, optimizer)  # each process has its parts
    dcp.save(dict(model=weights, optimizer=state), checkpoint_id=FOLDER / f"{epoch + 1}")

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.6f}")
accelerator.end_training()
