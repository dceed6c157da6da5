"""What every result says of the machine that made it."""

from pathlib import Path

import pytest

from stn_export import cli
from stn_export.bench.compare import different_machine
from stn_export.run import environment

MACHINES = {
    "Haswell": ("flags\t\t: fpu avx f16c fma avx2 bmi2", ["AVX", "AVX2", "FMA"]),
    "Zen 4": (
        "flags\t\t: avx fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16 avx512_vnni",
        ["AVX", "AVX2", "FMA", "AVX-512", "VNNI", "BF16"],
    ),
    "Knights Landing": ("flags\t\t: avx fma avx2 avx512f avx512cd", ["AVX", "AVX2", "FMA"]),
    "Alder Lake": ("flags\t\t: avx fma avx2 avx_vnni", ["AVX", "AVX2", "FMA", "VNNI"]),
    "Nehalem": ("flags\t\t: sse4_1 sse4_2 avx512_vnni_something", []),
    "Neoverse V1": (
        "Features\t: fp asimd asimdhp asimddp sve i8mm bf16",
        ["NEON", "dot product", "I8MM", "SVE", "FP16", "BF16"],
    ),
}


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that stands for /proc/cpuinfo."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "CPUINFO", path)
    environment.cpu_facts.cache_clear()
    yield path
    environment.cpu_facts.cache_clear()


@pytest.mark.parametrize("name", MACHINES)
def test_instruction_sets_by_their_short_names(name: str, cpuinfo: Path):
    flags, sets = MACHINES[name]
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: {name}\n{flags}\n\nprocessor\t: 1\nflags\t: amx_tile\n", encoding="utf-8"
    )
    assert environment.instruction_sets() == sets
    assert environment.describe()["instruction_sets"] == sets
    assert environment.cpu_name() == name


def test_a_system_that_says_nothing_has_a_name_all_the_same(cpuinfo: Path):
    assert not cpuinfo.exists()
    assert environment.instruction_sets() == []
    assert environment.cpu_name()


def test_doctor_shows_them(cpuinfo: Path, capsys: pytest.CaptureFixture[str]):
    cpuinfo.write_text(f"model name\t: Alder Lake\n{MACHINES['Alder Lake'][0]}\n", encoding="utf-8")
    assert cli.start(["doctor"]) == 0
    assert "AVX, AVX2, FMA, VNNI" in " ".join(capsys.readouterr().out.split())


def test_processors_of_one_name_and_other_instruction_sets_are_two_machines():
    """Virtual machines of a cloud are all called the same."""

    def content(**more: object) -> dict:
        return {"machine_info": {"stn_export": {"cpu": "AMD EPYC", "gpu": None, "threads": 1, **more}}}

    older, newer = content(instruction_sets=["AVX2"]), content(instruction_sets=["AVX2", "VNNI"])
    assert different_machine(older, newer) == ["instruction sets ['AVX2'] and ['AVX2', 'VNNI']"]
    assert different_machine(content(), newer) == []  # kept before they were noted
    assert different_machine(newer, newer) == []
