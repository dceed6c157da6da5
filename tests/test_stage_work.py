"""What export and verify do once, and not for every file, batch or test input."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stn_export.export import registry
from stn_export.program import passes
from stn_export.program.specs import Arrays, Contract, Pixels, TensorSpec
from stn_export.run import environment
from stn_export.verify import __main__ as verify
from stn_export.verify.checks import feed

utils = pytest.importorskip("torch._export.utils")


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple]:
    """Count the calls of a function; return the list of their arguments, which grows."""
    calls, own = [], getattr(owner, name)

    def noted(*arguments: object, **keywords: object) -> object:
        calls.append(arguments)
        return own(*arguments, **keywords)

    monkeypatch.setattr(owner, name, noted)
    return calls


FIXED = Contract(
    (
        TensorSpec("images", "float32", (4, 1, 2, 2), pixels=Pixels()),
        TensorSpec("gain", "float32", (1,), batched=False),
    ),
    (TensorSpec("sums", "float32", (4,)),),
)


def sums(feeds: Arrays) -> Arrays:
    """Sum every image, times the gain; reject what is not one batch of a memory of its own."""
    images = feeds["images"]
    assert images.shape == (4, 1, 2, 2)
    assert images.flags.c_contiguous
    assert images.flags.writeable
    total = images.sum(axis=(1, 2, 3)) * feeds["gain"]
    images.fill(np.nan)  # a runner may overwrite its input
    return {"sums": total}


def test_inputs_of_fixed_batches_are_converted_once(monkeypatch: pytest.MonkeyPatch):
    """Ten examples in batches of four: the third one is filled up, from the first example on."""
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)
    batch = {"images": images, "gain": torch.tensor([3.0])}
    conversions = counted(monkeypatch, TensorSpec, "array")
    seen: list[np.ndarray] = []

    def call(feeds: Arrays) -> Arrays:
        seen.append(feeds["images"].copy())
        return sums(feeds)

    result = feed(call, batch, FIXED, {"sums": 1})["sums"]
    assert len(conversions) == len(FIXED.inputs)
    assert len(seen) == 3
    expected = Pixels().normalise(images).numpy()
    assert np.array_equal(result, expected.sum(axis=(1, 2, 3)) * np.float32(3))
    assert np.array_equal(seen[2], expected[[8, 9, 0, 1]])


@pytest.mark.parametrize("threads", [1, 2])
def test_windows_of_float64_convolutions_are_few_at_once(monkeypatch: pytest.MonkeyPatch, threads: int):
    module = torch.fx.symbolic_trace(torch.nn.Conv2d(3, 4, 3)).double()
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),)).module(check_guards=False)
    images = torch.rand(100, 3, 8, 8, dtype=torch.float64)
    window = 27 * 64 * 8  # bytes of one example's
    monkeypatch.setattr(passes, "WINDOW_BYTES", 5 * window)
    node = next(node for node in program.graph.nodes if node.target in passes.CONVOLUTIONS)
    sizes: list[int] = []

    def convolution(part: torch.Tensor, *others: object) -> torch.Tensor:
        sizes.append(len(part))
        return node.target(part, *others)

    monkeypatch.setattr(passes, "operator_of", lambda _: convolution)
    weight, bias = module.weight.data, module.bias.data
    interpreter = SimpleNamespace(fetch_args_kwargs_from_env=lambda _: ((images, weight, bias), {}))
    with environment.using_threads(threads):
        result = passes.bounded(interpreter, node)
    assert set(sizes) == {5 * threads}
    assert torch.equal(result, module(images))


def test_composite_operators_are_looked_up_once_and_again_when_others_come(monkeypatch: pytest.MonkeyPatch):
    lookups = counted(monkeypatch, utils, registry.LOOKS_UP)
    with registry.read_once():
        utils._collect_all_valid_cia_ops()
        with registry.read_once():
            utils._collect_all_valid_cia_ops()
        assert len(lookups) == 1
        library = torch.library.Library("stn_export_late", "DEF")
        library.define("doubled(Tensor value) -> Tensor")
        library.impl("doubled", lambda value: value * 2, registry.COMPOSITE)
        found = utils._collect_all_valid_cia_ops()
        assert len(lookups) == 2
        assert torch.ops.stn_export_late.doubled.default in found
        library._destroy()
    with registry.read_once():
        utils._collect_all_valid_cia_ops()
    assert len(lookups) == 3  # a block of its own


def test_translations_are_read_without_parsing_their_source(monkeypatch: pytest.MonkeyPatch):
    from onnxscript._internal import ast_utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = ONNXRegistry.from_torchlib
    expected = read(opset_version=18)
    registry._read.cache_clear()
    parsed = counted(monkeypatch, ast_utils, "get_src_and_ast")
    found = registry._copied(read, opset_version=18)
    assert not parsed
    names = {name: [meta.onnx_function for meta in metas] for name, metas in expected.functions.items()}
    assert {name: [meta.onnx_function for meta in metas] for name, metas in found.functions.items()} == names


def test_versions_are_looked_up_once_and_a_copy_is_given(monkeypatch: pytest.MonkeyPatch):
    environment._installed.cache_clear()
    searches = counted(monkeypatch, environment.metadata, "version")
    first = environment.versions()
    first["torch"] = "another"
    assert environment.versions()["torch"] == torch.__version__.partition("+")[0]
    assert len(searches) == len(environment.PACKAGES)


def test_the_collector_is_as_it_was_after_a_stage_that_fails():
    before = gc.get_threshold()

    def stage() -> None:
        with environment.collecting_seldom():
            assert gc.get_threshold() == environment.SELDOM
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@contextmanager
def nothing(*_: object) -> Iterator[None]:
    """Stand in for a lock."""
    yield


def test_both_stages_collect_seldom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from stn_export.export import __main__ as export

    for stage, work in ((export, "_export"), (verify, "_verify")):
        thresholds: list[tuple] = []
        note: Callable[..., None] = lambda *_, seen=thresholds: seen.append(gc.get_threshold())  # noqa: E731
        monkeypatch.setattr(stage, work, note)
        monkeypatch.setattr(stage, "alone", nothing)
        monkeypatch.setattr(export, "close", lambda *_: None)
        stage.main(["--run", str(tmp_path)])
        assert thresholds == [environment.SELDOM], stage.__name__
