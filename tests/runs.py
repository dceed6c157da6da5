"""A run without training: untrained networks, lively enough to tell right from wrong, put in by everyone's door."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import Pixels
from stn_export.run.examples import Examples
from stn_export.run.manifest import PLAIN, SUBJECT, NetworkDirectory
from stn_export.run.network import enter, write_examples
from stn_export.train.digits import draw_digits
from stn_export.train.networks import build_model
from tests.zoo import copy_of

CLASSES = tuple("0123456789")


def lively(name: str) -> nn.Module:
    """A model of ours whose theta, where it has one, differs from image to image."""
    torch.manual_seed(1)
    model = build_model(name).eval()
    if name == "stn":
        nn.init.normal_(model.transformer.regressor[-1].weight, std=0.1)
    return model


def built_in(name: str) -> Program:
    """The same, captured once a process; a copy, so that a test may spoil its weights."""
    return copy_of(_captured(name))


@cache
def _captured(name: str) -> Program:
    captured = capture(lively(name), (torch.rand(2, 3, 32, 32),), [("N", 3, 32, 32)])
    contract = contract_of(captured.exported, captured.shapes, ["images"], ["log_probs"])
    contract = replace(contract, inputs=(replace(contract.inputs[0], pixels=Pixels()),))
    origin = {"callable": "stn_export.train.networks:build_model", "arguments": {"name": name}}
    return Program(captured.exported, contract, origin)


def digits_examples(count: int = 300) -> Examples:
    """Drawn digits with their labels."""
    images, labels = draw_digits(count + 64, seed=3)
    return Examples(
        {"images": images[:count]}, ("images",), labels[:count], CLASSES, {"images": images[count:]}, "drawn for tests"
    )


def enter_networks(run: Path, count: int = 300) -> Path:
    """A run with ``stn`` and ``cnn`` and so many examples, not exported yet; takes about two seconds."""
    examples = digits_examples(count)
    file = write_examples(run, examples)
    for name, label, role in (("stn", "spatial transformer", SUBJECT), ("cnn", "plain CNN", PLAIN)):
        directory = NetworkDirectory(run / name)
        enter(directory, built_in(name), file, label=label, role=role, source=examples.source, classes=CLASSES)
    return run
