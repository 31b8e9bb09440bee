"""Stop a training in the middle of an epoch, and go on with the very next batch.

    python examples/resume_stream.py runs/quickstart/dataset.zarr checkpoint.pt --stop-after 20
    python examples/resume_stream.py runs/quickstart/dataset.zarr checkpoint.pt

What it shows: `TorchStream` reads in shuffled blocks, for datasets larger than memory, and each batch carries the state
of the stream after it. Saved with the weights, it lets a later process go on as if nothing had happened, to the last
bit and with any number of workers.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from train_pytorch import Network, loss_of

from daskpipe.load import TorchStream, spec


def main(words: list[str] | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """Train, and save a checkpoint after each batch; return how many batches there were, and the weights."""
    parser = argparse.ArgumentParser(description="Train from a stream that can be resumed.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("checkpoint", type=Path, help="written after each batch; gone on from if it is there")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="batches; as if the process had been killed")
    arguments = parser.parse_args(words)

    torch.manual_seed(0)
    model = Network(spec(arguments.dataset, "train", cutoff=5.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    stream = TorchStream(arguments.dataset, "train", batch_size=4, seed=1, cutoff=5.0, dtype=torch.float32)
    if arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        stream.load_state_dict(saved["stream"])
        print(f"goes on in epoch {stream.epoch} after batch {saved['stream']['n_batches']}; {len(stream)} are left")
    n_batches = 0
    for epoch in range(stream.epoch, arguments.epochs):
        stream.set_epoch(epoch)
        for batch in DataLoader(stream, batch_size=None, num_workers=arguments.workers):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            n_batches += 1
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": batch.state}
            save(state, arguments.checkpoint)
            if n_batches == arguments.stop_after:
                print(f"stopped in epoch {epoch}, after {n_batches} batches; type the same without --stop-after")
                return n_batches, model.state_dict()
        print(f"epoch {epoch}  loss of its last batch {loss.item():.4f}")
    return n_batches, model.state_dict()


def save(state: dict[str, object], path: Path) -> None:
    """Write a checkpoint that is whole or not there."""
    attempt = path.with_suffix(".part")
    torch.save(state, attempt)
    os.replace(attempt, path)


if __name__ == "__main__":
    main()
