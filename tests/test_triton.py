from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import triton
from stn_export.export.triton import DATA_TYPES, model_config, to_text, write_repository
from stn_export.program.specs import TensorSpec
from stn_export.run.manifest import Artifact, NetworkDirectory
from tests.conftest import REPOSITORY
from tests.zoo import ZOO

ONNX_TYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.UINT8: "TYPE_UINT8"}
MODELS = {"stn_torchscript_fp32", "stn_matmul_fp32", "stn_affinegrid_fp32", "cnn_torchscript_fp32", "cnn_plain_fp32"}


@pytest.fixture(scope="module")
def schema() -> type[Message]:
    """Triton's ``inference.ModelConfig``."""
    text = (REPOSITORY / "tests" / "triton_model_config.textproto").read_text(encoding="utf-8")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


@pytest.fixture(scope="module")
def repository(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(trained_run, target)
    return target


def parse(schema: type[Message], text: str) -> Message:
    return text_format.Parse(text, schema())


def symbol(message: Message, field: str) -> str:
    """The name of an enum field's value."""
    values = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return values[getattr(message, field)].name


def described(tensor: onnx.ValueInfoProto) -> tuple[str, str, list[int]]:
    """Name, Triton's type and dims without the batch, as an ONNX file states them."""
    kind = tensor.type.tensor_type
    assert kind.shape.dim[0].dim_param
    return tensor.name, ONNX_TYPES[kind.elem_type], [dim.dim_value for dim in kind.shape.dim[1:]]


def stated(tensor: Message) -> tuple[str, str, list[int]]:
    """The same, as a model's configuration states them."""
    return tensor.name, symbol(tensor, "data_type"), list(tensor.dims)


def test_a_model_per_artifact(repository: Path):
    assert {path.name for path in repository.iterdir() if path.is_dir()} >= MODELS
    for folder in (path for path in repository.iterdir() if path.is_dir()):
        [version] = (path for path in folder.iterdir() if path.is_dir())
        assert version.name == "1"
        assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list("0123456789")


def test_every_configuration_says_what_its_model_says(repository: Path, schema: type[Message]):
    onnx_models = 0
    for path in repository.glob("*/config.pbtxt"):
        config = parse(schema, path.read_text(encoding="utf-8"))
        assert config.name == path.parent.name
        [input_], [output] = config.input, config.output
        assert output.label_filename == "labels.txt"
        if config.backend == "onnxruntime":
            onnx_models += 1
            graph = onnx.load(path.parent / "1" / "model.onnx").graph
            assert [stated(input_)] == [described(tensor) for tensor in graph.input]
            assert [stated(output)] == [described(tensor) for tensor in graph.output]
            assert config.platform == "onnxruntime_onnx"
        else:
            assert (config.backend, config.platform) == ("pytorch", "pytorch_libtorch")
            assert (input_.name, output.name) == ("INPUT__0", "OUTPUT__0")
            assert (path.parent / "1" / "model.pt").exists()
    assert onnx_models >= 3


def test_batching_and_instances(repository: Path, schema: type[Message]):
    config = parse(schema, (repository / "stn_matmul_fp32" / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.max_batch_size == max(config.dynamic_batching.preferred_batch_size) == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    [group] = config.instance_group
    assert (group.count, symbol(group, "kind")) == (1, "KIND_AUTO")


def test_a_model_carries_the_bytes_and_hashes_of_its_artifact(
    repository: Path, trained_run: Path, schema: type[Message]
):
    stn = NetworkDirectory(trained_run / "stn")
    config = parse(schema, (repository / "stn_matmul_fp32" / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.parameters["sha256"].string_value == stn.artifacts["matmul-fp32"].sha256
    assert config.parameters["program_sha256"].string_value == stn.artifacts["program"].sha256
    served = (repository / "stn_matmul_fp32" / "1" / "model.onnx").read_bytes()
    assert served == (stn.path / "matmul-fp32.onnx").read_bytes()


@pytest.mark.parametrize(("lowering", "dims"), [("uint8", [3, 32, 32]), ("uint8-nhwc", [32, 32, 3])])
def test_raw_bytes(lowering: str, dims: list[int], stn: NetworkDirectory, schema: type[Message]):
    artifact = stn.artifacts[f"folded-fp32-{lowering}"]
    config = parse(schema, to_text(model_config(artifact, tuple("0123456789"))))
    assert stated(config.input[0]) == ("images", "TYPE_UINT8", dims)


def configured(name: str, like: Artifact, schema: type[Message]) -> Message:
    """How a network of the zoo would be served."""
    artifact = replace(like, contract=ZOO[name].program().contract)
    return parse(schema, to_text(model_config(artifact, tuple("0123456789"))))


def test_any_inputs_and_outputs(stn: NetworkDirectory, schema: type[Message]):
    config = configured("DeformableAttention", stn.artifacts["matmul-fp32"], schema)
    assert [stated(each) for each in config.input] == [
        ("queries", "TYPE_FP32", [-1, 16]),
        ("points", "TYPE_FP32", [-1, 2]),
        ("values", "TYPE_FP32", [126, 16]),
    ]
    assert not any(output.label_filename for output in config.output)
    config = configured("Glimpses", stn.artifacts["torchscript-fp32"], schema)
    assert [stated(each) for each in config.output] == [
        ("OUTPUT__0", "TYPE_FP32", [3, 10]),
        ("OUTPUT__1", "TYPE_INT64", [3]),
        ("OUTPUT__2", "TYPE_FP32", [24]),
    ]
    config = configured("GreyDigits", stn.artifacts["matmul-fp32"], schema)
    assert [output.label_filename for output in config.output] == ["labels.txt", ""]


def test_what_has_no_open_batch_is_served_whole(stn: NetworkDirectory, schema: type[Message]):
    artifact = stn.artifacts["matmul-fp32"]
    whole = TensorSpec("sum", "float64", (), batched=False)
    contract = replace(artifact.contract, outputs=(*artifact.contract.outputs, whole))
    config = parse(schema, to_text(model_config(replace(artifact, contract=contract), ())))
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert [stated(each) for each in config.output] == [
        ("log_probs", "TYPE_FP32", [-1, 10]),
        ("sum", "TYPE_FP64", [1]),
    ]
    assert config.output[1].HasField("reshape")
    assert list(config.output[1].reshape.shape) == []


def test_every_data_type_is_one_of_tritons(schema: type[Message]):
    for kind in DATA_TYPES.values():
        assert parse(schema, to_text({"input": {"data_type": kind}})).input[0].data_type > 0


def test_the_writer_quotes_what_must_be_quoted(schema: type[Message]):
    text = 'a "quoted" \\ line\nand ×'
    assert parse(schema, to_text({"name": text})).name == text


def times(target: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in target.rglob("*")}


def test_writing_again_touches_nothing(run: Path, tmp_path: Path):
    first = write_repository(run, tmp_path / "repository")
    before = times(tmp_path / "repository")
    assert write_repository(run, tmp_path / "repository") == first
    assert times(tmp_path / "repository") == before


def test_its_own_files_are_replaced_and_removed(run: Path, tmp_path: Path):
    target = tmp_path / "repository"
    write_repository(run, target)
    config = target / "stn_matmul_fp32" / "config.pbtxt"
    good = config.read_text(encoding="utf-8")
    config.write_text("edited", encoding="utf-8")
    (run / "cnn" / "manifest.json").unlink()
    names = write_repository(run, target)
    assert config.read_text(encoding="utf-8") == good
    assert {path.name for path in target.iterdir() if path.is_dir()} == set(names)
    assert not any(name.startswith("cnn") for name in names)


def test_an_interrupted_call_can_be_repeated(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, write = tmp_path / "repository", triton.write_if_changed

    def interrupted(path: Path, content: bytes) -> bool:
        if path.name == "model.onnx":
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(triton, "write_if_changed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_repository(run, target)
    assert (target / "stn_torchscript_fp32" / "config.pbtxt").exists()
    assert set(write_repository(run, target)) >= MODELS


@pytest.mark.parametrize("name", ["notes.txt", "stn_matmul_fp32/2/model.onnx"])
def test_a_directory_with_something_else_is_left_alone(name: str, run: Path, tmp_path: Path):
    target = tmp_path / "repository"
    write_repository(run, target)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine", encoding="utf-8")
    before = times(target)
    with pytest.raises(UserError, match=f"holds {name}, which an export did not write"):
        write_repository(run, target)
    assert times(target) == before


def test_a_listing_cannot_reach_outside(run: Path, tmp_path: Path):
    target, outside = tmp_path / "repository", tmp_path / "mine.txt"
    write_repository(run, target)
    outside.write_text("mine", encoding="utf-8")
    listing = target / "repository.json"
    listing.write_text(
        listing.read_text(encoding="utf-8").replace('"files": [', '"files": ["../mine.txt",'), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"repository\.json is damaged: it lists \.\./mine\.txt"):
        write_repository(run, target)
    assert outside.exists()


@pytest.mark.parametrize(("parts", "words"), [(("manifest.json",), "is not a directory"), (("..",), "did not write")])
def test_a_place_that_cannot_be_taken(parts: tuple[str, ...], words: str, stn: NetworkDirectory, run: Path):
    with pytest.raises(UserError, match=words):
        write_repository(run, stn.path.joinpath(*parts))


def test_a_place_that_cannot_be_written(run: Path, stn: NetworkDirectory):
    with pytest.raises(UserError, match="cannot be written"):
        write_repository(run, stn.path / "manifest.json" / "repository")


def test_the_export_stage_writes_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(export.main, ["--run", str(run), "--triton", str(tmp_path / "repository")]) == 0
    assert "stn_matmul_fp32" in capsys.readouterr().out
    assert (tmp_path / "repository" / "stn_matmul_fp32" / "1" / "model.onnx").exists()
    assert cli.run(export.main, ["--run", str(run), "--triton", str(run)]) == 2
    assert "did not write" in capsys.readouterr().err
