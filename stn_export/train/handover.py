"""Prepare a trained network for the later stages: its checkpoint, its program, and its examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stn_export import cli
from stn_export.errors import UserError, command, one_line
from stn_export.program.capture import capture
from stn_export.program.origin import BUILT_IN, origin_of
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, Contract, Pixels, TensorSpec
from stn_export.run.examples import Examples
from stn_export.run.manifest import CHECKPOINT, PROGRAM, PROGRAM_FILE
from stn_export.run.network import enter, program_settings, write_examples
from stn_export.run.store import all_or_none, latest, load_tensors, serialise, sha256_of, write_atomically
from stn_export.train.data import Dataset, seen_in_training
from stn_export.train.networks import build_model
from stn_export.train.recipes import CIFAR10_SIZES, MEAN, MODELS, STD, Sizes
from stn_export.train.sweep import Cell

# Checkpoints: weights and metadata in one file that loads with ``weights_only=True``.


SCHEMA = "stn_export/checkpoint/1"
SIZES = "sizes"  # key of ``meta``: those of the network where they are not CIFAR-10's


@dataclass(frozen=True)
class Checkpoint:
    """A trained model on the CPU in evaluation mode, with its ``meta``: model, classes, settings and history."""

    model: nn.Module
    meta: dict


def save_checkpoint(path: Path, model: nn.Module, meta: dict) -> None:
    """Write weights and ``meta`` (JSON-ready, with at least ``model`` and ``classes``) atomically."""
    # meta is stored as text: a pickled dict's bytes depend on which of its strings are one object
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, serialise({"schema": SCHEMA, "meta": json.dumps(meta), "weights": weights}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: if the file is missing, truncated, or not a checkpoint of this package.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a checkpoint of stn_export", f"name one that {command('train')} wrote")
    try:
        meta = json.loads(content["meta"])
        model = build_model(meta["model"], **meta.get(SIZES, {}))
        model.load_state_dict(content["weights"])
    except UserError:
        raise
    except RuntimeError as error:
        raise UserError(f"{path} holds weights of another network than {meta['model']}", "train it again") from error
    except Exception as error:  # torch, json and others raise various errors
        raise UserError(f"{path} holds no network of this version: {one_line(error)}", "train it again") from error
    return Checkpoint(model.eval().requires_grad_(False), meta)


IMAGES = "images"
CALIBRATION_IMAGES = 512


def contract_of(sizes: Sizes) -> Contract:
    """Return the inputs and outputs of one of this package's networks."""
    return Contract(
        (TensorSpec(IMAGES, "float32", (BATCH, *sizes.image), pixels=Pixels((MEAN,), (STD,))),),
        (TensorSpec("log_probs", "float32", (BATCH, sizes.classes)),),
    )


CONTRACT = contract_of(CIFAR10_SIZES)


def captured(model: nn.Module, name: str, sizes: Sizes = CIFAR10_SIZES) -> Program:
    """Capture one of this package's networks, on the CPU and in evaluation mode, as a program."""
    contract = contract_of(sizes)
    captured = capture(model, (torch.zeros(2, *sizes.image),), [spec.shape for spec in contract.inputs])
    return Program(captured.exported, contract, _origin(name, sizes))


def _origin(name: str, sizes: Sizes) -> dict:
    arguments: dict[str, Any] = {"name": name, **sizes.arguments}
    return origin_of(BUILT_IN, **arguments)


@cache
def cost(name: str, sizes: Sizes = CIFAR10_SIZES) -> int:
    """Return the multiply-adds of one image, which the time of training is proportional to."""
    return captured(build_model(name, **sizes.arguments).eval(), name, sizes).multiply_adds()


def examples_of(dataset: Dataset) -> Examples:
    """Return the test images with their labels; int8 is calibrated on training images as training sees them."""
    spec, dataset = dataset.spec, dataset.to(torch.device("cpu"))
    seen = seen_in_training(dataset, CALIBRATION_IMAGES)
    parts = (dataset.test.images, dataset.test.labels, seen, dataset.train.labels[:CALIBRATION_IMAGES])
    images, labels, seen, of_seen = (part.clone() for part in parts)  # a view would be saved with its whole storage
    return Examples({IMAGES: images}, (IMAGES,), labels, spec.classes, {IMAGES: seen}, spec.note, of_seen)


def enter_trained(cells: Sequence[Cell], dataset: Dataset) -> None:
    """Register trained cells in their run: write the examples and the programs that are not there already."""
    if not cells:
        return
    with all_or_none():
        _enter_trained(cells, dataset)


def _enter_trained(cells: Sequence[Cell], dataset: Dataset) -> None:
    examples = write_examples(cells[0].run, examples_of(dataset))
    digest, spec, sizes = sha256_of(latest(examples)), dataset.spec, dataset.sizes
    for cell in cells:
        directory, network = cell.directory, MODELS[cell.settings.model]
        checkpoint = directory.listed(CHECKPOINT)
        settings = program_settings(contract_of(sizes), _origin(network.name, sizes))
        if directory.holds(PROGRAM, checkpoint.sha256, settings) and directory.facts.examples["sha256"] == digest:
            continue
        program = captured(load_checkpoint(directory.open(checkpoint)).model, network.name, sizes)
        enter(
            directory,
            program,
            examples,
            label=network.label,
            role=network.role,
            note=network.note,
            source=spec.note,
            classes=spec.classes,
            parent_sha256=checkpoint.sha256,
        )
        cli.say(f"{cell}: wrote {directory.path / PROGRAM_FILE}")
