"""Published peaks are those of the exact card: recomputed from its multiprocessors, lanes and clock."""

import pytest

from benchmarks.tools.peak_share import PEAKS, published_peak

BUILD = {  # streaming multiprocessors, float32 lanes of each, boost clock in GHz: NVIDIA's architecture white papers
    "Tesla T4": (40, 64, 1.590),
    "NVIDIA A10": (72, 128, 1.695),
    "NVIDIA A100-PCIE-40GB": (108, 64, 1.410),
    "NVIDIA A100-SXM4-40GB": (108, 64, 1.410),
    "NVIDIA A100 80GB PCIe": (108, 64, 1.410),
    "NVIDIA A100-SXM4-80GB": (108, 64, 1.410),
    "NVIDIA GeForce RTX 4090": (128, 128, 2.520),
    "NVIDIA L4": (58, 128, 2.040),
    "NVIDIA L40S": (142, 128, 2.520),
    "NVIDIA H100 PCIe": (114, 128, 1.755),
    "NVIDIA H100 NVL": (132, 128, 1.785),
    "NVIDIA H100 80GB HBM3": (132, 128, 1.980),
    "NVIDIA GH200 480GB": (132, 128, 1.980),
    "NVIDIA H200": (132, 128, 1.980),
    "NVIDIA H200 NVL": (132, 128, 1.785),
    "NVIDIA B200": (148, 128, 1.980),
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_float32_rate_follows_from_the_hardware(name: str):
    multiprocessors, lanes, gigahertz = BUILD[name]
    assert PEAKS[name].flops["fp32"] == pytest.approx(multiprocessors * lanes * 2 * gigahertz * 1e9, rel=0.01)


@pytest.mark.parametrize("name", PEAKS)
def test_tensor_cores_double_by_precision(name: str):
    flops = PEAKS[name].flops
    assert flops["int8"] == pytest.approx(flops["fp16"] * (4 if "4090" in name else 2), rel=0.02)
    if "tf32" in flops:
        assert flops["fp16"] == pytest.approx(flops["tf32"] * 2, rel=0.03)
        assert flops["bf16"] == flops["fp16"]


def test_the_form_of_a_card_counts():
    rates = {name: published_peak(f"NVIDIA H100 {name}") for name in ("PCIe", "NVL", "80GB HBM3")}
    assert len({rate["flops"]["fp32"] for rate in rates.values() if rate}) == 3
    for unknown in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 3060", "NVIDIA H100"):
        assert published_peak(unknown) is None
