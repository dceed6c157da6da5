"""``MODEL_CARD.md``: what a run's models are, how far they can be trusted, and every file of them.

The card states what the manifests and checkpoints hold and no times, so that equal runs give equal cards.
"""

from pathlib import Path

import jinja2

from stn_export.artifacts.files import write_if_changed
from stn_export.artifacts.manifest import MODEL_CARD, Artifact, NetworkDirectory, network_directories
from stn_export.config import DEFAULT_EXPORT, INPUT_NAME, OUTPUT_NAME
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import class_names

TEMPLATE = "MODEL_CARD.md.j2"
SHORT_HASH = 12
MODEL_NOTES = {
    "stn": "spatial transformer in front of the classifier",
    "cnn": "the same classifier alone",
    "cnn-matched": "that classifier widened until it takes as many multiply-adds as the one with the transformer",
}
DATA_NOTES = {
    "digits": "10,000 training and 2,000 test images of the digits 0 to 9, drawn from the fonts that matplotlib "
    "ships: turned, scaled, shifted and cluttered",
    "cifar10": "CIFAR-10 (A. Krizhevsky, 2009): 50,000 training and 10,000 test photographs",
    "cifar10-affine": "CIFAR-10 (A. Krizhevsky, 2009), each photograph turned, scaled and shifted at random: 50,000 "
    "for training, afresh each time they are seen, and 10,000 for testing, once",
}


def write_model_card(run: Path) -> bool:
    """Write ``<run>/MODEL_CARD.md`` where its content changes, and say whether it did.

    Raises:
        UserError: where the run has no models, or one of its artifacts is missing, edited or stale.
    """
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    text = environment.get_template(TEMPLATE).render(card_facts(run))
    return write_if_changed(run / MODEL_CARD, text.encode())


def card_facts(run: Path) -> dict:
    """What the template shows: models, files, classes, the data set and the snippet (empty without an ONNX file)."""
    directories = network_directories(run)
    checkpoint = directories[0].checkpoint()
    files = [_file(*entry) for directory in directories for entry in directory.expected()]
    return {
        "dataset": checkpoint.settings["dataset"],
        "data_note": DATA_NOTES[checkpoint.settings["dataset"]],
        "classes": class_names(checkpoint),
        "models": [_model(directory) for directory in directories],
        "files": files,
        "snippet": next((snippet(row) for row in files if _takes_any_batch(row)), ""),
    }


def _takes_any_batch(file: dict) -> bool:
    return file["format"] == "onnx" and file["lowering"] != DEFAULT_EXPORT


def _model(directory: NetworkDirectory) -> dict:
    checkpoint = load_checkpoint(directory.open(directory.checkpoint()))
    history = checkpoint.meta["history"]
    return {
        "name": directory.model,
        "note": MODEL_NOTES[directory.model],
        "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        "recipe": checkpoint.meta["settings"]["recipe"],
        "seed": checkpoint.meta["settings"]["seed"],
        "epochs": len(history),
        "accuracy": history[-1]["test_accuracy"],
    }


def _file(artifact: Artifact, path: Path) -> dict:
    return {
        "path": f"{artifact.model}/{artifact.file}",
        "format": artifact.format,
        "lowering": artifact.lowering or "–",
        "precision": artifact.precision,
        "opset": artifact.opset or "–",
        "contract": contract_text(artifact.input_contract),
        "bytes": path.stat().st_size,
        "sha256": artifact.sha256[:SHORT_HASH],
    }


def contract_text(contract: dict) -> str:
    """An input contract for a person: ``N×3×32×32 float32, (x / 255 - 0.5) / 0.5``."""
    meaning = f"(x / 255 - {contract['mean']}) / {contract['std']}" if "mean" in contract else "bytes as they are"
    return f"{'×'.join(map(str, contract['shape']))} {contract['dtype']}, {meaning}"


def snippet(file: dict) -> str:
    """Three lines of Python that run an ONNX file from the run directory on ``images``."""
    return "\n".join(
        (
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{file["path"]}", providers=["CPUExecutionProvider"])',
            f'log_probs = session.run(["{OUTPUT_NAME}"], {{"{INPUT_NAME}": images}})[0]  # images: {file["contract"]}',
        )
    )
