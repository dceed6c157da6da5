"""Checkpoints: weights and what is known of them, in one file that loads with ``weights_only=True``.

The same training gives the same bytes, so nothing here holds a time or a machine's name.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stn_export.artifacts.files import load_tensors, serialise, write_atomically
from stn_export.errors import UserError, one_line
from stn_export.train.networks import build_model

SCHEMA = "stn_export/checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model on the CPU in evaluation mode, with its ``meta``: model, dataset, classes, recipe, metrics."""

    model: nn.Module
    meta: dict


def save_checkpoint(path: Path, model: nn.Module, meta: dict) -> None:
    """Write weights and ``meta`` (JSON-ready, with at least ``model`` and ``classes``) atomically."""
    # meta travels as text: a pickled dict's bytes depend on which of its strings are one object
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, serialise({"schema": SCHEMA, "meta": json.dumps(meta), "weights": weights}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: where the file is missing, truncated, or no checkpoint of this package.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a checkpoint of stn_export", "name one that 'make train' wrote")
    try:
        meta = json.loads(content["meta"])
        model = build_model(meta["model"])
        model.load_state_dict(content["weights"])
    except UserError:
        raise
    except RuntimeError as error:
        raise UserError(f"{path} holds weights of another network than {meta['model']}", "train it again") from error
    except Exception as error:  # of torch, json and the rest, by what is missing
        raise UserError(f"{path} holds no network of this version: {one_line(error)}", "train it again") from error
    return Checkpoint(model.eval().requires_grad_(False), meta)
