"""Define what the benchmarks time, and for how long: frozen dataclasses and tables, like ``config``. No I/O."""

from dataclasses import dataclass, replace

from stn_export.run.manifest import PLAIN, SUBJECT
from stn_export.runners.external import RUNTIMES

BEST = "best"


@dataclass(frozen=True)
class Pick:
    """A selection of what can be timed, by properties; an empty tuple selects all values.

    ``runners`` are patterns as in file names. Runners that are slow to start are selected only if ``slow`` is set. The
    lowering ``BEST`` is each network's first of ``manifest.PREFERRED``.
    """

    batches: tuple[int, ...] = (1,)
    roles: tuple[str, ...] = ()
    runners: tuple[str, ...] = ()
    lowerings: tuple[str | None, ...] = ()
    precisions: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    slow: bool = False


@dataclass(frozen=True)
class BenchGrid:
    """The plan of ``bench``: what each suite times, and for how long.

    ``latency`` is at batch 1 with its input in the cache, ``cold`` with its input out of it; ``request`` includes the
    copies; ``throughput`` is at larger batches; ``startup`` is a fresh process, ``startups`` times; ``breakdown``
    profiles ``profiled_calls`` calls. The others are paired comparisons: ``overhead`` against the run's plain network,
    ``lowering`` against the exporter's own, ``eager`` against eager PyTorch, ``default`` against the default export in
    a default session, ``pytorch`` a request against every way to run it in PyTorch, on the grid's threads and on all
    cores.

    Every row takes about ``row_seconds`` after ``warmup_seconds``. A paired comparison has ``blocks`` blocks in which
    each side takes about ``block_seconds``.
    """

    name: str
    row_seconds: float
    warmup_seconds: float
    blocks: int
    block_seconds: float
    startups: int
    profiled_calls: int
    latency: tuple[Pick, ...]
    cold: tuple[Pick, ...]
    request: tuple[Pick, ...]
    throughput: tuple[Pick, ...]
    startup: tuple[Pick, ...]
    breakdown: tuple[Pick, ...]
    overhead: tuple[Pick, ...]
    lowering: tuple[Pick, ...]
    eager: tuple[Pick, ...]
    default: tuple[Pick, ...]
    pytorch: tuple[Pick, ...]
    threads: int = 1


SHIPPED = Pick(lowerings=(None, BEST), precisions=("fp32",), inputs=("float",))  # one row per runner
SHIPPED_SUBJECT = replace(SHIPPED, roles=(SUBJECT,))
QUICK_RUNNERS = (
    *("eager-c*", "cudagraph-*", "torchscript-*", "onnxruntime-c*", "onnxruntime-graph-*", "openvino-*", "native-*"),
)
OTHERS = tuple(runtime.runner for runtime in RUNTIMES)  # if they were requested
QUICK_SUBJECT = replace(SHIPPED_SUBJECT, runners=QUICK_RUNNERS)
INT8_SUBJECT = Pick(roles=(SUBJECT,), precisions=("int8",), inputs=("float",))
COLD = replace(SHIPPED_SUBJECT, runners=("eager-c*", "onnxruntime-c*", "onnxruntime-stream-*", "native-*"))
BASELINES = Pick(roles=(SUBJECT,), runners=("eager-autograd-*", "onnxruntime-default-*"))
DEPLOYED = replace(SHIPPED_SUBJECT, runners=("onnxruntime-c*", "native-*"))
PROFILED = replace(SHIPPED, runners=("eager-c*", "onnxruntime-cpu"))  # ONNX Runtime times launches on CUDA, not kernels
GRAPH_AGAINST_GRAPH = "pt2-*"  # both are graphs; in eager, a captured plain network has no code of its own
STARTED = ("eager-c*", "torchscript-*", "onnxruntime-c*", "native-*")
LARGER = tuple(2**power for power in range(1, 14))
FULL = BenchGrid(
    "full",
    row_seconds=2.0,
    warmup_seconds=0.5,
    blocks=100,
    block_seconds=0.05,
    startups=5,
    profiled_calls=50,
    latency=(Pick(slow=True),),
    cold=(COLD,),
    request=(replace(SHIPPED, batches=(1, 256), slow=True), replace(BASELINES, batches=(1, 256))),
    throughput=(
        replace(SHIPPED, batches=LARGER, slow=True),
        Pick(batches=(256,)),
    ),
    startup=(replace(SHIPPED, slow=True), BASELINES),
    breakdown=(replace(PROFILED, batches=(1, 256)),),
    overhead=(
        Pick(slow=True),
        replace(SHIPPED, batches=(16, 64, 256, 1024), slow=True),
    ),
    lowering=(Pick(batches=(1, 256)),),
    eager=(replace(SHIPPED_SUBJECT, batches=(1, 16, 256, 1024), slow=True), Pick(roles=(SUBJECT,), batches=(1, 256))),
    default=(Pick(roles=(SUBJECT,), slow=True),),
    pytorch=(replace(DEPLOYED, batches=(1, 256)),),
)
GRIDS = {
    grid.name: grid
    for grid in (
        BenchGrid(
            "quick",
            row_seconds=0.3,
            warmup_seconds=0.1,
            blocks=25,
            block_seconds=0.01,
            startups=1,
            profiled_calls=20,
            latency=(SHIPPED, BASELINES, Pick(precisions=("bf16", "fp16", "int8"), inputs=("float",))),
            cold=(COLD,),
            request=(replace(QUICK_SUBJECT, batches=(1, 16, 256)), BASELINES),
            throughput=(replace(SHIPPED, batches=(16, 256)), replace(INT8_SUBJECT, batches=(256,))),
            startup=(replace(SHIPPED_SUBJECT, runners=STARTED), BASELINES),
            breakdown=(PROFILED,),
            overhead=(
                replace(SHIPPED, runners=(*QUICK_RUNNERS, GRAPH_AGAINST_GRAPH), batches=(1, 64)),
                replace(SHIPPED, runners=OTHERS),
            ),
            lowering=(Pick(runners=("onnxruntime-c*",), precisions=("fp32",)),),
            eager=(
                replace(QUICK_SUBJECT, batches=(1, 256)),
                replace(INT8_SUBJECT, batches=(256,)),
                replace(SHIPPED_SUBJECT, runners=OTHERS),
            ),
            default=(QUICK_SUBJECT,),
            pytorch=(DEPLOYED,),
        ),
        FULL,
        # for a GPU that is rented by the minute: its calls are short, so less time suffices
        replace(
            FULL,
            name="gpu",
            row_seconds=0.25,
            warmup_seconds=0.1,
            blocks=25,
            block_seconds=0.005,
            startups=1,
            throughput=(
                replace(SHIPPED_SUBJECT, batches=(8, 64, 512, 2048, 8192)),
                replace(SHIPPED, roles=(PLAIN,), batches=(512, 8192)),
                replace(SHIPPED_SUBJECT, runners=("compiled-*",), batches=(512,), slow=True),
            ),
            request=(replace(QUICK_SUBJECT, batches=(1, 256)), BASELINES),
            startup=(replace(SHIPPED_SUBJECT, runners=("eager-c*", "cudagraph-cuda", "onnxruntime-c*")), BASELINES),
            overhead=(replace(SHIPPED, batches=(1, 1024)),),
            lowering=(Pick(),),
            eager=(replace(SHIPPED_SUBJECT, batches=(1, 1024)),),
            default=(QUICK_SUBJECT,),
        ),
    )
}
