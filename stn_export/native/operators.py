"""Write each operator in C: one function per operator, and the table of them."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument

from stn_export.native.convolution import HEAVY, TILE, convolution, int8_constants, int8_numbers, pair
from stn_export.native.graph import Shape, arguments, axes_of, name_of, refusal
from stn_export.native.writer import SLACK, Value, Writer, contiguous, loops, scalar
from stn_export.program.capture import AFFINE_GRIDS, GRID_SAMPLES, operand, operator_of

POINTWISE = {  # the names in braces are PyTorch's argument names
    "abs": "fabsf({self})",
    "add": "{self} + {other} * {alpha}",
    "clamp": "clamp({self}, {min}, {max})",
    "clamp_max": "clamp({self}, -INFINITY, {max})",
    "clamp_min": "clamp({self}, {min}, INFINITY)",
    "cos": "cosf({self})",
    "div": "{self} / {other}",
    "elu": "{scale} * ({self} > 0 ? {self} : {alpha} * expm1f({self} * {input_scale}))",
    "exp": "expf({self})",
    "ge": "{self} >= {other}",
    "gelu": "0.5f * {self} * (1 + erff({self} * 0.70710678f))",
    "gt": "{self} > {other}",
    "hardsigmoid": "clamp({self} + 3, 0, 6) / 6",
    "hardswish": "{self} * clamp({self} + 3, 0, 6) / 6",
    "hardtanh": "clamp({self}, {min_val}, {max_val})",
    "le": "{self} <= {other}",
    "leaky_relu": "{self} < 0 ? {self} * {negative_slope} : {self}",
    "log": "logf({self})",
    "lt": "{self} < {other}",
    "maximum": "{self} > {other} ? {self} : {other}",
    "minimum": "{self} < {other} ? {self} : {other}",
    "mish": "{self} * tanhf(log1pf(expf({self})))",
    "mul": "{self} * {other}",
    "neg": "-{self}",
    "pow": "powf({self}, {exponent})",
    "reciprocal": "1 / {self}",
    "relu": "clamp({self}, 0, INFINITY)",
    "relu6": "clamp({self}, 0, 6)",
    "rsqrt": "1 / sqrtf({self})",
    "rsub": "{other} - {self} * {alpha}",
    "selu": "1.05070099f * ({self} > 0 ? {self} : 1.67326324f * expm1f({self}))",
    "sigmoid": "1 / (1 + expf(-{self}))",
    "silu": "{self} / (1 + expf(-{self}))",
    "sin": "sinf({self})",
    "softplus": "{self} * {beta} > {threshold} ? {self} : log1pf(expf({self} * {beta})) / {beta}",
    "sqrt": "sqrtf({self})",
    "square": "{self} * {self}",
    "sub": "{self} - {other} * {alpha}",
    "tanh": "tanhf({self})",
    "where": "{condition} != 0 ? {self} : {other}",
}


def pointwise(w: Writer, node: Node) -> None:
    """Write an elementwise expression, its operands broadcast."""
    named = vars(arguments(node))
    if named.get("rounding_mode") or named.get("approximate", "none") != "none":
        raise refusal(node, "rounds or approximates in a way that is not written in C")
    if any(isinstance(argument, Node) and argument not in w.example.shapes for argument in node.args):
        raise refusal(node, "computes with the size of the batch")
    tensors = {name: w.value(value) for name, value in named.items() if isinstance(value, Node)}
    texts = {name: name if name in tensors else _number(name, value) for name, value in named.items()}
    expression(w, node, POINTWISE[name_of(node)].format(**texts), tensors)


def _number(name: str, value: object) -> str:
    if value is None:
        return {"min": "-INFINITY", "max": "INFINITY"}.get(name, "0")
    return scalar(value) if isinstance(value, (int, float)) else str(value)


def expression(w: Writer, node: Node, text: str, tensors: dict[str, Value]) -> None:
    """Write the C expression ``text`` for every element; ``tensors`` are the values of its names."""
    float_only(node, torch.bool)
    out = w.new(node)
    strides = [contiguous(out.shape), *(broadcast(tensor.shape, out.shape) for tensor in tensors.values())]

    def body(at: list[str]) -> list[str]:
        read = [
            f"{name} = ({tensor.text})[{place}]" for (name, tensor), place in zip(tensors.items(), at[1:], strict=True)
        ]
        return [f"const float {', '.join(read)};", f"{out.text}[{at[0]}] = {text};"]

    w.step(node, loops(out.shape, strides, body), [out, *tensors.values()])


def float_only(node: Node, *others: torch.dtype) -> None:
    """Reject results of types other than float32 and ``others``."""
    if node.meta["val"].dtype not in (torch.float32, *others):
        raise refusal(node, f"gives {node.meta['val'].dtype}; float32 alone is written in C")


def broadcast(shape: Shape, target: Shape) -> Shape:
    """Return the strides that read a tensor as if it had another shape."""
    return torch.empty(shape, device="meta").expand(target).stride()


def per_channel(w: Writer, node: Node, text: str, **constants: Tensor) -> None:
    """Write an expression of a tensor and constants per channel."""
    x = w.value(operand(node))
    shape = (len(next(iter(constants.values()))), *[1] * (len(x.shape) - 2))
    values = {name: Value(w.constant(f"{node.name}_{name}", data), shape) for name, data in constants.items()}
    expression(w, node, text, {"self": x} | values)


def prelu(w: Writer, node: Node) -> None:
    """Write a leaky ReLU with one slope per channel."""
    per_channel(w, node, "self < 0 ? self * slope : self", slope=w.data(operand(node, 1), node))


def batch_norm(w: Writer, node: Node) -> None:
    """Write a batch norm that no convolution absorbed: a scale and a shift per channel."""
    scale, shift = w.normalisation(node)
    per_channel(w, node, "self * scale + shift", scale=scale, shift=shift)


def view(w: Writer, node: Node) -> None:
    """Write a view: no code where its elements are contiguous, else a copy."""
    source = node
    picks: list[Argument] = []
    while name_of(source) == "getitem":
        picks.insert(0, source.args[1])
        source = operand(source)
    if name_of(source) not in VIEWS:
        raise refusal(node, f"takes a part of {name_of(source)}, which is not written in C")
    operator = operator_of(source)
    named, first = vars(arguments(source)), operator._schema.arguments[0].name
    x = w.value(named[first])
    seen = operator(**named | {first: torch.empty(x.shape, device="meta")})
    for pick in picks:
        seen = seen[pick]
    if named[first] in w.example.batched and named.get("dim") in (0, -len(x.shape)) and seen.shape != x.shape:
        raise refusal(node, "works across the examples of a batch")
    float_only(node, named[first].meta["val"].dtype)
    seen = torch.empty(seen.shape, device="meta") if seen._base is None else seen  # a clone has the same values
    begin, shape = x.at(seen.storage_offset()), tuple(seen.shape)
    if seen.is_contiguous():
        w.values[node] = Value(begin, shape, x.root)
        return
    out, strides = w.new(node), [contiguous(shape), seen.stride()]
    w.step(node, loops(shape, strides, lambda at: [f"{out.text}[{at[0]}] = ({begin})[{at[1]}];"]), [out, x])


def copied(out: Value, part: Tensor, x: Value, shape: Shape) -> list[str]:
    """Copy ``x``, read as ``shape``, into the part of ``out`` that ``part`` views."""
    to, strides = out.at(part.storage_offset()), [part.stride(), contiguous(shape)]
    return loops(shape, strides, lambda at: [f"({to})[{at[0]}] = ({x.text})[{at[1]}];"])


def joined(w: Writer, node: Node) -> None:
    """Concatenate tensors along a dimension, or stack them along a new one."""
    args, out, lines, begin = arguments(node), w.new(node), [], 0
    axis, values = args.dim % len(out.shape), [w.value(tensor) for tensor in args.tensors]
    if axis == 0 and node in w.example.batched:
        raise refusal(node, "works across the examples of a batch")
    for value in values:
        shape = (*value.shape[:axis], 1, *value.shape[axis:]) if name_of(node) == "stack" else value.shape
        lines += copied(out, torch.empty(out.shape, device="meta").narrow(axis, begin, shape[axis]), value, shape)
        begin += shape[axis]
    w.step(node, lines, [out, *values])


def padding(w: Writer, node: Node) -> None:
    """Pad a tensor with a constant."""
    args, x = arguments(node), w.value(operand(node))
    if getattr(args, "mode", "constant") != "constant" or min(args.pad) < 0 or len(args.pad) > 2 * len(x.shape) - 2:
        raise refusal(node, "pads in a way that is not written in C")
    out = w.new(node)
    part = torch.empty(out.shape, device="meta")
    for axis, before in enumerate(reversed(args.pad[::2]), len(x.shape) - len(args.pad) // 2):
        part = part.narrow(axis, before, x.shape[axis])
    fill = f"for (int i = 0; i < {out.count}; i++) {out.text}[i] = {scalar(args.value or 0)};"
    w.step(node, [fill, *copied(out, part, x, x.shape)], [out, x])


def tiled(w: Writer, name: str, weight: Tensor, bias: Tensor | None) -> str:
    """Lay out a matrix (outputs × inputs) for ``matrix_vector``; return the arguments: names, inputs, outputs."""
    outputs, inputs = weight.shape
    biases = weight.new_zeros(-(-outputs // 16) * 16)
    if bias is not None:
        biases[:outputs] = bias
    return f"{tiles(w, name, weight)}, {w.constant(f'{name}_bias', biases)}, {inputs}, {outputs}"


def tiles(w: Writer, name: str, weight: Tensor) -> str:
    """Lay out a matrix in tiles of 16 outputs, those of an input side by side; return its name."""
    laid = torch.cat([weight, weight.new_zeros(-len(weight) % 16, weight.shape[1])])
    return w.constant(f"{name}_weights", laid.unflatten(0, (-1, 16)).transpose(1, 2))


def linear(w: Writer, node: Node) -> None:
    """Multiply rows by a constant matrix, fused with a clamp where nothing else reads the result."""
    args = arguments(node)
    weight, x = w.data(args.weight, node), w.value(args.input)
    int8 = w.int8_layer(weight)
    bias = None if int8 or args.bias is None else w.data(args.bias, node)
    matrix = "" if int8 else tiled(w, node.name, weight, bias)
    last, low, high = w.clamped(node)
    out, (outputs, inputs) = w.new(last), weight.shape
    rows = x.count // inputs
    joint = rows == 1 and bool(x.root) and weight.numel() >= HEAVY
    examples = f"pitch_{x.root}, pitch_{out.root}, count" if joint else f"{inputs}, {outputs}, {rows}"
    passed, scratch = f"{x.text}, {out.text}, {examples}", 0
    call = f"matrix_rows({matrix}, {scalar(low)}, {scalar(high)}, {passed}, part, parts);"
    if int8:
        names, scratch = ", ".join(int8_constants(w, node, int8, int8.weight)), 4 * (TILE + inputs // 4 + 1)
        numbers = f"(bytes){int8_numbers(int8, (low, high))}"
        call = f"rows_of_bytes({numbers}, {names}, {inputs}, {outputs}, {passed}, scratch, part, parts);"
    w.step(node, [call], [x, out], scratch, rows * inputs * outputs, shared=True, joint=joint)


def matmul(w: Writer, node: Node) -> None:
    """Multiply matrices, broadcast over all but their last two dimensions."""
    shape, right, out = w.example.shapes[operand(node)], w.value(operand(node, 1)), w.new(node)
    if operand(node) in w.example.constants and len(shape) == 2 and len(right.shape) > 1:
        constant_matmul(w, node, right, out)
        return
    first, across = w.value(operand(node)), right.shape[-1] if len(right.shape) > 1 else 1
    inner, rows = shape[-1], shape[-2] if len(shape) > 1 else 1
    lead = torch.broadcast_shapes(shape[:-2], right.shape[:-2])
    strides = [broadcast(value.shape, (*lead, *value.shape[-2:]))[: len(lead)] for value in (first, right)]
    strides.append(tuple(step * rows * across for step in contiguous(lead)))

    def body(at: list[str]) -> list[str]:
        return [f"matrix_matrix({first.at(at[0])}, {right.at(at[1])}, {rows}, {inner}, {across}, {out.at(at[2])});"]

    w.step(node, loops(lead, strides, body), [first, right, out])


def constant_matmul(w: Writer, node: Node, right: Value, out: Value) -> None:
    """Multiply a constant matrix by matrices, over whose leading dimensions it is broadcast."""
    rows, inner = w.example.shapes[operand(node)]
    lead, across = right.shape[:-2], right.shape[-1]
    left = tiles(w, node.name, w.data(operand(node), node))
    call = f"tiles_matrix({left}, {{}}, {rows}, {inner}, {across}, {{}}, part, parts);"
    strides = [contiguous(value.shape)[:-2] for value in (right, out)]
    lines = loops(lead, strides, lambda at: [call.format(right.at(at[0]), out.at(at[1]))])
    w.step(node, lines, [right, out], multiply_adds=out.count * inner, shared=True)


def gru_cell(w: Writer, node: Node) -> None:
    """Write a gated recurrent unit for one row per example."""
    args, names = arguments(node), []
    x, state, out = w.value(args.input), w.value(args.hx), w.new(node)
    for name, weight, bias in (("input", args.w_ih, args.b_ih), ("state", args.w_hh, args.b_hh)):
        data = None if bias is None else w.data(bias, node)
        names.append(tiled(w, f"{node.name}_{name}", w.data(weight, node), data))
    if x.count > x.shape[-1]:
        raise refusal(node, "takes several rows of one example, which is not written in C")
    size = out.shape[-1]
    gates, others = "scratch", f"scratch + {3 * size + 16}"
    lines = [
        f"matrix_vector({names[0]}, -INFINITY, INFINITY, {x.text}, {gates});",
        f"matrix_vector({names[1]}, -INFINITY, INFINITY, {state.text}, {others});",
        f"gru({gates}, {others}, {size}, {state.text}, {out.text});",
    ]
    w.step(node, lines, [x, state, out], 6 * size + 32)


def max_pool(w: Writer, node: Node) -> None:
    """Take the maximum of each window."""
    args, x, out = arguments(node), w.value(operand(node)), w.new(node)
    if pair(args.dilation) != [1, 1]:
        raise refusal(node, "has gaps in its windows, which is not written in C")
    pairs = [pair(setting) for setting in (args.kernel_size, args.stride or args.kernel_size, args.padding)]
    texts = [f"(const int[]){{{', '.join(map(str, values))}}}" for values in pairs]
    sizes = f"{math.prod(x.shape[:-2])}, {x.shape[-2]}, {x.shape[-1]}, {', '.join(texts)}"
    call = f"max_pool({x.text}, {sizes}, {out.shape[-2]}, {out.shape[-1]}, {out.text}, scratch, part, parts);"
    room = max(x.shape[-1] + pairs[2][1], (out.shape[-1] - 1) * pairs[1][1] + pairs[0][1]) + 2 * SLACK
    w.step(node, [call], [x, out], room, shared=True)


def resampled(w: Writer, node: Node) -> None:
    """Write average pooling or resizing as two constant matrices, as it is linear along height and along width."""
    x, out, operator = w.value(operand(node)), w.new(node), operator_of(node)
    (height, width), (out_height, out_width) = x.shape[-2:], out.shape[-2:]
    named, first = vars(arguments(node)), operator._schema.arguments[0].name

    def asked(images: Tensor) -> Tensor:
        return operator(**named | {first: images.double()[:, None]})[:, 0]

    scale = asked(torch.ones(1, height, width))[0, 0, 0]
    rows = asked(torch.eye(height)[:, :, None].expand(-1, -1, width))[:, :, 0].T  # out_height × height
    columns = asked(torch.eye(width)[:, None].expand(-1, height, -1))[:, 0] / scale  # width × out_width
    axes = [_axis(w, f"{node.name}_{name}", data) for name, data in (("down", rows), ("across", columns.T))]
    call = f"resample({x.text}, {math.prod(x.shape[:-2])}, {axes[0]}, {axes[1]}, {out.text}, scratch, part, parts);"
    room = max(out_height * width, height * out_width) + 2 * SLACK
    w.step(node, [call], [x, out], room, shared=True)


def _axis(w: Writer, name: str, matrix: Tensor) -> str:
    """Write how an axis is resampled by a matrix (outputs × inputs) of which few neighbours in a row are not zero."""
    outputs, inputs = matrix.shape
    indices = torch.arange(inputs).expand(outputs, -1)
    first = indices.masked_fill(matrix == 0, inputs - 1).amin(1)
    taps = int((indices.masked_fill(matrix == 0, 0).amax(1) - first).amax().clamp(min=0)) + 1
    first = first.clamp(max=inputs - taps)
    weights = w.constant(f"{name}_weights", matrix.gather(1, first[:, None] + torch.arange(taps)))
    w.functions[name] = f"static const int c_{name}[] = {{{', '.join(map(str, first.tolist()))}}};\n"
    return f"(resampling){{{inputs}, {outputs}, {taps}, c_{name}, {weights}}}"


def reduced(begin: str, more: str, end: str, w: Writer, node: Node) -> None:
    """Reduce over dimensions: start at ``begin``, apply ``more`` to every value, return ``end``."""
    args, x = arguments(node), w.value(operand(node))
    if name_of(node) != "argmax":
        float_only(node)
    axes = axes_of(w.example, node, operand(node), getattr(args, "dim", None))
    out, steps, kept = w.new(node), contiguous(x.shape), [axis for axis in range(len(x.shape)) if axis not in axes]
    inner, outer = ([x.shape[axis] for axis in group] for group in (axes, kept))

    def body(at: list[str]) -> list[str]:
        def once(place: list[str]) -> list[str]:
            return [more.format(value=f"({x.text})[{at[1]} + {place[0]}]", index=place[1])]

        strides = [[steps[axis] for axis in axes], contiguous(inner)]
        total = f"double total = {begin}{', at = 0' if end == 'at' else ''};"
        last = f"{out.text}[{at[0]}] = (float)({end.format(count=math.prod(inner))});"
        return [total, *loops(inner, strides, once, "uvwxyz"), last]

    w.step(node, loops(outer, [contiguous(outer), [steps[axis] for axis in kept]], body), [x, out])


def softmax(logarithm: int, w: Writer, node: Node) -> None:
    """Write a softmax, or its logarithm, over one dimension."""
    x, args = w.value(operand(node)), arguments(node)
    float_only(node)
    axis = axes_of(w.example, node, operand(node), args.dim)[0]
    out, sizes = w.new(node), [math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])]
    w.step(node, [f"softmax({logarithm}, {x.text}, {', '.join(map(str, sizes))}, {out.text});"], [x, out])


def affine_grid(w: Writer, node: Node) -> None:
    """Write an affine grid, only where something other than a sampler reads it."""
    if all(user.target in GRID_SAMPLES and user.args[0] is not node for user in node.users):
        return
    theta, out = w.value(operand(node)), w.new(node)
    sizes = f"{out.shape[1]}, {out.shape[2]}, {int(arguments(node).align_corners)}"
    strides = [contiguous(value.shape)[:1] for value in (theta, out)]
    lines = loops(out.shape[:1], strides, lambda at: [f"affine_grid({theta.at(at[0])}, {sizes}, {out.at(at[1])});"])
    w.step(node, lines, [theta, out])


def grid_sample(w: Writer, node: Node) -> None:
    """Sample at an affine grid that is computed from theta on the fly, or at any other grid."""
    image, grid, mode, padding_mode, corners = vars(arguments(node)).values()
    x, affine, out = w.value(image), grid.target in AFFINE_GRIDS, w.new(node)
    where = w.value(grid.args[0] if affine else grid)
    numbers = [*x.shape[1:], *out.shape[2:], padding_mode, corners, affine and arguments(grid).align_corners]
    sampler = f"(sampler){{{', '.join(str(int(number)) for number in numbers)}}}"
    kernel = f"sample_bilinear({sampler}" if mode == 0 else f"sample({int(mode == 2)}, {sampler}"

    def body(at: list[str]) -> list[str]:
        points = f"{where.at(at[1])}, NULL" if affine else f"NULL, {where.at(at[1])}"
        return [f"{kernel}, {x.at(at[0])}, {points}, {out.at(at[2])}{', scratch' if mode == 0 else ''});"]

    strides = [contiguous(value.shape)[:1] for value in (x, where, out)]
    room = 4 * (x.shape[2] + 3) * (x.shape[3] + 3) + 16 if mode == 0 else 0
    w.step(node, loops(x.shape[:1], strides, body), [x, where, out], room)


VIEWS = (
    "alias", "chunk", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "getitem", "lift_fresh_copy",
    "narrow", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to", "transpose",
    "unbind", "unflatten", "unsqueeze", "view", "view_as",
)  # fmt: skip
RESAMPLING = ("adaptive_avg_pool2d", "avg_pool2d", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d")

OPERATORS: dict[str, Callable[[Writer, Node], None]] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(VIEWS, view),
    **dict.fromkeys(RESAMPLING, resampled),
    **dict.fromkeys(("cat", "stack"), joined),
    **dict.fromkeys(("mm", "bmm", "matmul"), matmul),
    **dict.fromkeys(("affine_grid", "affine_grid_generator"), affine_grid),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), grid_sample),
    **dict.fromkeys(("pad", "constant_pad_nd"), padding),
    "amax": partial(reduced, "-INFINITY", "total = {value} > total ? {value} : total;", "total"),
    "amin": partial(reduced, "INFINITY", "total = {value} < total ? {value} : total;", "total"),
    "argmax": partial(reduced, "-INFINITY", "if ({value} > total) total = {value}, at = {index};", "at"),
    "batch_norm": batch_norm,
    "conv2d": convolution,
    "gru_cell": gru_cell,
    "linear": linear,
    "log_softmax": partial(softmax, 1),
    "max_pool2d": max_pool,
    "mean": partial(reduced, "0", "total += {value};", "total / {count}"),
    "prelu": prelu,
    "softmax": partial(softmax, 0),
    "sum": partial(reduced, "0", "total += {value};", "total"),
}
