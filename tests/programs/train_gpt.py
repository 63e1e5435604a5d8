# SPDX-License-Identifier: Apache-2.0
"""Trains a small GPT in plain PyTorch, with the means that real trainings use, each by a flag. Knows nothing of kjoule.

    train_gpt.py [--steps N] [--seconds S] [--device cuda|cpu] [--optimizer foreach|fused] [--amp] [--graph] [--workers N] [--pinned] [--streams]
                 [--checkpoint] [--compile]
"""
import argparse
import math
import pathlib
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(width, 2))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.before, self.after, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))


class GPT(nn.Module):
    def __init__(self, vocabulary, width=128, heads=4, depth=4, length=64, checkpointed=False):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.checkpointed = checkpointed

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(self.norm(x))

    def loss(self, ids):
        return F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


class Text(Dataset):
    def __init__(self, length=64):
        text = "".join(p.read_text() for p in sorted((pathlib.Path(__file__).parent / "data").glob("*.txt")))
        letters = {c: i for i, c in enumerate(sorted(set(text)))}
        self.vocabulary, self.length = len(letters), length
        self.data = torch.tensor([letters[c] for c in text])

    def __len__(self):
        return 10_000_000

    def __getitem__(self, i):
        at = i * 7919 % (len(self.data) - self.length - 1)
        return self.data[at : at + self.length + 1]


def one_step(model, optimizer, scaler, ids, options):
    optimizer.zero_grad(set_to_none=not options.graph)
    with torch.autocast(options.device, dtype=torch.float16, enabled=options.amp):
        loss = model.loss(ids)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss


def captured(model, optimizer, ids):
    """One training step as a CUDA graph; the batch is copied into `still` before each replay."""
    still = ids.clone()

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = model.loss(still)
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay(batch):
        still.copy_(batch)
        graph.replay()
        return loss

    return replay


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--optimizer", choices=["foreach", "fused"], default="foreach")
    for flag in ("amp", "graph", "pinned", "streams", "checkpoint", "compile"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(7)
    text = Text()
    model = GPT(text.vocabulary, checkpointed=options.checkpoint).to(options.device)
    if options.compile:
        model.compile()
        model.loss = torch.compile(model.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **{options.optimizer: True}, capturable=options.graph)
    scaler = torch.amp.GradScaler(options.device, enabled=options.amp)
    loader = DataLoader(text, 16, num_workers=options.workers, pin_memory=options.pinned)
    copies = torch.cuda.Stream() if options.streams else None
    replay, step, start_s = None, 0, time.monotonic()
    for batch in loader:
        if copies:
            with torch.cuda.stream(copies):
                ids = batch.to(options.device, non_blocking=True)
            torch.cuda.current_stream().wait_stream(copies)
        else:
            ids = batch.to(options.device, non_blocking=options.pinned)
        if options.graph:
            replay = replay or captured(model, optimizer, ids)
            loss = replay(ids)
        else:
            loss = one_step(model, optimizer, scaler, ids, options)
        step += 1
        if step % 25 == 0 or step == 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
        if step == options.steps or time.monotonic() - start_s > options.seconds:
            break
    model.eval()
    with torch.no_grad():
        evaluation = sum(model.loss(text[i][None].to(options.device)).item() for i in range(8)) / 8
    print(f"evaluation {evaluation:.4f}, perplexity {math.exp(evaluation):.2f}")


if __name__ == "__main__":
    main()
