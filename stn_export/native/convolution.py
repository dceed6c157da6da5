"""Write convolutions in C: what is fused with them, which algorithm computes them, how their weights are laid out."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from stn_export.native.graph import arguments, refusal
from stn_export.native.writer import Int8Layer, Writer, contiguous, loops, scalar

CACHED = 48 * 1024  # floats of columns that fit into the level-2 cache
TALL = "tall_convolution"
HEAVY = 1 << 15  # weights that are read once for several examples, from this many on
TILE = 32  # output channels whose weights lie side by side, as in ``kernels.c``
PADDED = 4 * 1024  # floats of padded channels that leave room in the level-1 cache
BLOCKS = range(8, 3, -1)  # sizes of a block of output channels, the preferred first


@dataclass
class Layer:
    """The fields of ``convolution`` in ``kernels.c``, with the same names."""

    channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    pad_top: int
    pad_left: int
    dilation_height: int
    dilation_width: int
    groups: int
    pooled: int
    block: int
    strip: int

    @property
    def span(self) -> int:
        """The distance in rows from the kernel's first row to its last."""
        return (self.kernel_height - 1) * self.dilation_height

    @property
    def shared(self) -> bool:
        """Whether the kernel's rows read the same columns, shifted by rows."""
        return self.stride_height == 1

    @property
    def padded_width(self) -> int:
        """The columns of a padded row that a row of outputs reads."""
        return (self.out_width - 1) * self.stride_width + (self.kernel_width - 1) * self.dilation_width + 1

    @property
    def fours(self) -> int:
        """The words of four channels that bytes are read in, over all groups."""
        return self.groups * -(-self.channels // self.groups // 4)

    def planes(self, channels: int) -> int:
        """Return the planes of columns that so many channels, or words of channels, take."""
        return channels * self.kernel_width * (1 if self.shared else self.kernel_height)

    def literal(self, *further: str) -> str:
        """Return it as a ``convolution`` of C, with further fields."""
        fields = [*(f".{name} = {size}" for name, size in vars(self).items()), *further]
        lines = (", ".join(fields[at : at + 4]) for at in range(0, len(fields), 4))
        return "{" + ",\n                           ".join(lines) + "}"

    def read(self, rows: int) -> int:
        """Return the input rows that this many output rows read."""
        return (rows - 1) * self.stride_height + self.span + 1

    def part(self, weight: Tensor) -> Tensor:
        """Return the weights of the direct algorithms: outputs × inputs × columns × rows of the kernel."""
        return weight.transpose(2, 3) if self.shared else weight.flatten(2).unsqueeze(3)

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has a kernel of its own that ``depthwise_convolution`` takes."""
        strides = self.stride_width == 1 or (self.stride_width == 2 and self.dilation_width == 1)
        return self.channels == self.out_channels == self.groups and strides and not self.pooled

    def in_strips(self, row: int, extra: int) -> int:
        """Choose the output rows of a strip so that its columns stay in the cache, and return the number of strips.

        Columns take ``row`` floats per output row, for ``extra`` rows beyond those of the strip.
        """
        step = 1 + self.pooled
        rows = min(self.out_height, max(step, (CACHED // row - extra) // step * step))
        even = -(-self.out_height // -(-self.out_height // rows))
        self.strip = -(-even // step) * step
        return -(-self.out_height // self.strip)

    def cost(self, positions: int, kernel_columns: int) -> int:
        """Estimate the vector operations for this many output positions."""
        blocks = self.groups * -(-self.out_channels // self.groups // self.block)
        products = self.channels // self.groups * kernel_columns * self.kernel_height
        return -(-positions // 16) * products * blocks * self.block


class Way(NamedTuple):
    """An algorithm: its vector operations, C function, rows per strip, floats of scratch, and weights by part.

    ``per_row`` is how many multiply-adds one row of one output channel takes per input channel and kernel row,
    ``block`` the field of ``Layer``. Weights of two dimensions are laid out already.
    """

    cost: int
    function: str
    strip: int
    room: int
    parts: dict[str, Tensor]
    per_row: int
    block: int


def convolution(w: Writer, node: Node) -> None:
    """Write a convolution, fused with a batch norm, 2×2 max pooling and clamp where nothing else reads between."""
    args = arguments(node)
    x, weight = w.value(args.input), w.data(args.weight, node)
    bias = weight.new_zeros(len(weight)) if args.bias is None else w.data(args.bias, node)
    last = node
    if norm := w.follower(last, "batch_norm"):
        scale, shift = w.normalisation(norm)
        weight, bias, last = weight * scale.view(-1, 1, 1, 1), bias * scale + shift, norm
    last, low, high = w.clamped(last)
    size, pool = w.example.shapes[last][1:], w.follower(last, "max_pool2d")
    if pooled := pool is not None and _halves(pool):
        size = (size[0], *(2 * size for size in w.example.shapes[pool][2:]))
        last, low, high = (pool, low, high) if math.isfinite(low) or math.isfinite(high) else w.clamped(pool)
    w.absorbed |= {node for node in (norm, pool if pooled else None) if node is not None}
    sizes = [*x.shape[1:], *size, *weight.shape[2:], *args.stride, *_padding(args, weight), *args.dilation, args.groups]
    sizes += [int(pooled), _block(len(weight) // args.groups), 0]
    layer, int8 = Layer(*sizes), w.int8_layer(weight)
    stated = math.prod(w.example.shapes[node]) * weight[0].numel()
    if int8 is not None:
        _int8_convolution(w, node, layer, int8, last, (low, high), stated)
        return
    ways = (_depthwise,) if layer.is_depthwise else (_plain, _fast, _tall)
    way = min((way for lay_out in ways if (way := lay_out(layer, weight))), key=lambda way: way.cost)
    products = x.shape[0] * layer.out_height * len(weight) * weight.shape[1] * weight.shape[2] * way.per_row
    w.multiply_adds_saved += stated - products
    layer.strip, layer.block = way.strip, way.block
    out, function = w.new(last), _function(w, node, layer, way, bias, (low, high))
    strides = [contiguous(value.shape)[:1] for value in (x, out)]
    joint = way.function == TALL and x.shape[0] == 1 and bool(x.root) and weight.numel() >= HEAVY
    examples = f"pitch_{x.root}, pitch_{out.root}, count, " if joint else "0, 0, 1, " if way.function == TALL else ""
    more = f"{examples}scratch, part, parts"
    lines = loops(x.shape[:1], strides, lambda at: [f"{function}({x.at(at[0])}, {out.at(at[1])}, {more});"])
    w.step(node, lines, [x, out], way.room, stated, shared=True, joint=joint)


def _halves(pool: Node) -> bool:
    args = arguments(pool)
    window = (args.kernel_size, args.stride or args.kernel_size, args.padding, args.dilation)
    return [*map(pair, window)] == [[2, 2], [2, 2], [0, 0], [1, 1]] and not args.ceil_mode


def pair(value: int | list[int]) -> list[int]:
    """Return one value for height and one for width."""
    values = value if isinstance(value, list) else [value]
    return values * 2 if len(values) == 1 else values


def _padding(args: SimpleNamespace, weight: Tensor) -> list[int]:
    if isinstance(args.padding, list):
        return args.padding
    spans = [step * (size - 1) for step, size in zip(args.dilation, weight.shape[2:], strict=True)]
    return [span // 2 if args.padding == "same" else 0 for span in spans]


def _block(channels: int) -> int:
    """Return how many output channels are summed at once: a divisor of all where possible."""
    return next((size for size in BLOCKS if channels % size == 0), -(-channels // -(-channels // BLOCKS[0])))


def _room(count: int) -> int:
    """Return the floats of a buffer as in ``kernels.c``, slack included."""
    return -(-(count + 16) // 16) * 16


def _plain(layer: Layer, weight: Tensor) -> Way:
    """Lay out the direct algorithm; the kernel's rows share columns if the vertical stride is 1."""
    planes = layer.planes(layer.channels)
    strips = layer.in_strips(planes * layer.out_width, layer.span if layer.shared else 0)
    positions, read = layer.strip * layer.out_width, layer.read(layer.strip)
    columns = planes * (read if layer.shared else layer.strip) * layer.out_width
    room = _room(layer.channels * read * layer.padded_width) + _room(columns)
    room += (layer.out_channels + layer.block) * _room(positions)
    cost = strips * layer.cost(positions, layer.kernel_width)
    per_row = layer.out_width * layer.kernel_width
    return Way(cost, "plain_convolution", layer.strip, room, {"all": layer.part(weight)}, per_row, layer.block)


def _fast(layer: Layer, weight: Tensor) -> Way | None:
    """Lay out the fast algorithm, three products of half the columns; None where it does not apply."""
    if (layer.stride_height, layer.stride_width, layer.dilation_width) != (1, 1, 1) or layer.kernel_width < 3:
        return None
    half, longer, shorter = -(-layer.out_width // 2), -(-layer.kernel_width // 2), layer.kernel_width // 2
    strips = layer.in_strips(layer.channels * longer * (half + 1), layer.span)
    count, lines = layer.strip * half, layer.channels * (layer.strip + layer.span)
    products = ((count + layer.strip, longer), (count, shorter), (count, longer))
    more = 3 * (lines * (half + longer) + layer.out_channels * count) // 16  # to split columns and join the sums
    cost = strips * (sum(layer.cost(*product) for product in products) + more)
    room = 4 * _room(lines * (half + longer)) + 3 * (layer.out_channels + layer.block) * _room(count + layer.strip)
    even, odd = weight[..., ::2], weight[..., 1::2]
    both = torch.cat([odd, torch.zeros_like(even)], 3)[..., :longer] + even
    parts = {name: part.transpose(2, 3) for name, part in (("even", even), ("odd", odd), ("both", both))}
    room += _room(lines * longer * (half + 1))
    per_row = (half + 1) * longer + half * shorter + half * longer
    return Way(cost, "fast_convolution", layer.strip, room, parts, per_row, layer.block)


def _tall(layer: Layer, weight: Tensor) -> Way | None:
    """Lay out the direct algorithm with vectors over output channels; None where it does not apply."""
    if layer.groups > 1 or layer.pooled or layer.out_channels < TILE:
        return None
    positions, read = layer.out_height * layer.out_width, layer.read(layer.out_height)
    planes = layer.planes(layer.channels)
    columns = planes * (read if layer.shared else layer.out_height) * layer.out_width
    room = _room(TILE * positions) + _room(columns) + _room(layer.channels * read * layer.padded_width)
    cost = -(-layer.out_channels // TILE) * TILE // 16 * positions * weight[0].numel()
    per_row = layer.out_width * layer.kernel_width
    return Way(cost, TALL, 0, room, {"all": layer.part(weight)}, per_row, TILE)


def _depthwise(layer: Layer, weight: Tensor) -> Way:
    """Lay out the algorithm for a kernel per channel."""
    read = layer.read(layer.out_height)
    half = layer.out_width + layer.kernel_width // 2
    width = 2 * half if layer.stride_width == 2 else layer.out_width + (layer.kernel_width - 1) * layer.dilation_width
    taps = layer.kernel_height * layer.kernel_width
    block = max(1, min(layer.channels, PADDED // (read * width)))
    room = _room(block * read * width) + 2 * _room(block * read * half) * (layer.stride_width == 2)
    per_row = layer.out_width * layer.kernel_width
    return Way(taps, "depthwise_convolution", 0, room, {"all": weight.flatten(1)}, per_row, block)


def _function(w: Writer, node: Node, layer: Layer, way: Way, bias: Tensor, bounds: tuple[float, float]) -> str:
    """Write the C function of a layer, from input, output and scratch, and return its name."""
    laid = {name: part if part.ndim == 2 else _laid(part, layer) for name, part in way.parts.items()}
    names = [w.constant(f"{node.name}_{name}", part) for name, part in laid.items()]
    names.append(w.constant(f"{node.name}_bias", bias))
    clamp = [f".{name} = {scalar(bound)}" for name, bound in zip(("low", "high"), bounds, strict=True)]
    blocks, examples, sizes = "", "", ""
    if way.function == TALL:
        examples, sizes = "in_step, out_step, count, ", "int in_step, int out_step, int count, "
    elif way.strip:
        blocks = f"convolve_{layer.block}, "
        w.functions[f"convolve_{layer.block}"] = (
            f"APART convolve_{layer.block}(const float *in, int planes, int plane, int rows, int row, const float *weights,\n"  # noqa: E501
            "                 int positions, float *out, int pitch, const ending *end) {\n"
            f"    convolve({layer.block}, in, planes, plane, rows, row, weights, positions, out, pitch, end);\n}}\n"
        )
    w.functions[f"layer_{node.name}"] = (
        f"APART layer_{node.name}(const float *in, float *out, {sizes}float *scratch, int part, int parts) {{\n"
        f"    const convolution c = {layer.literal(*clamp)};\n"
        f"    {way.function}(c, {blocks}{', '.join(names)}, in, out, {examples}scratch, part, parts);\n}}\n"
    )
    return f"layer_{node.name}"


def _laid(weight: Tensor, layer: Layer) -> Tensor:
    """Lay weights out as ``sums`` reads them.

    From output channels × channels × columns × rows to group, block, channel, column and row, the output channels of a
    block side by side.
    """
    grouped = weight.unflatten(0, (layer.groups, -1))
    missing = grouped.new_zeros(layer.groups, -grouped.shape[1] % layer.block, *weight.shape[1:])
    return torch.cat([grouped, missing], 1).unflatten(1, (-1, layer.block)).movedim(2, -1)


# Convolutions of an int8 file: bytes by bytes, added up as whole numbers.

FINISHING = 10  # vector operations that make an output of a sum
TURNING = 12  # more of them where vectors go over output channels


def _int8_convolution(
    w: Writer, node: Node, layer: Layer, int8: Int8Layer, last: Node, bounds: tuple[float, float], stated: int
) -> None:
    """Write a convolution in int8, up to the node ``last`` that was fused with it."""
    x, out = w.value(arguments(node).input), w.new(last)
    room = _int8_function(w, node, layer, int8, bounds)
    strides = [contiguous(value.shape)[:1] for value in (x, out)]
    call = f"layer_{node.name}({{}}, {{}}, scratch, part, parts);"
    lines = loops(x.shape[:1], strides, lambda at: [call.format(x.at(at[0]), out.at(at[1]))])
    w.step(node, lines, [x, out], room, stated, shared=True)


def _int8_function(w: Writer, node: Node, layer: Layer, int8: Int8Layer, bounds: tuple[float, float]) -> int:
    """Write the C function of a layer in int8, and return the floats of scratch it needs."""
    layer.block = TILE
    function, room = min(_wide_bytes(layer), _tall_bytes(layer))[1:]
    names = int8_constants(w, node, int8, layer.part(int8.weight), layer.groups)
    if function == "wide_bytes":
        names[:0] = [_block_of_bytes(w, _at_once(layer)), str(_at_once(layer))]
    w.functions[f"layer_{node.name}"] = (
        f"APART layer_{node.name}(const float *in, float *out, float *scratch, int part, int parts) {{\n"
        f"    const convolution c = {layer.literal()};\n"
        f"    const bytes b = {int8_numbers(int8, bounds)};\n"
        f"    {function}(c, b, {', '.join(names)}, in, out, scratch, part, parts);\n}}\n"
    )
    return room


def int8_numbers(int8: Int8Layer, bounds: tuple[float, float]) -> str:
    """Return the ``bytes`` of ``int8.c`` that a layer has."""
    (x_scale, x_zero), (y_scale, y_zero) = int8.x, int8.y
    numbers = [float(np.float32(1) / np.float32(x_scale)), y_scale, -y_zero, 255 - y_zero, *bounds]
    return f"{{{', '.join(map(scalar, numbers))}, {x_zero}}}"


def int8_constants(w: Writer, node: Node, int8: Int8Layer, part: Tensor, groups: int = 1) -> list[str]:
    """Write a layer's weights, laid out as ``part``, its bias and its factors; return their names.

    Raises:
        UserError: where sums may be larger than 32 bits hold.
    """
    sums, most = (values.long().flatten(1).sum(1) for values in (int8.weight, int8.weight.long().abs()))
    if (int8.bias.abs() + 2 * 255 * most).max() >= 1 << 31:
        raise refusal(node, "has sums in int8 that 32 bits do not hold")
    factors = int8.x[0] * int8.scales.double() / int8.y[0]
    return [
        w.integers(f"{node.name}_bytes", _words(part, groups)),
        w.integers(f"{node.name}_bias", _by_tile(int8.bias.long() - int8.x[1] * sums, groups).numpy()),
        w.constant(f"{node.name}_factors", _by_tile(factors, groups)),
    ]


def _at_once(layer: Layer) -> int:
    """Return how many output channels are summed at once: few to spare in a tile."""
    channels = layer.out_channels // layer.groups
    return BLOCKS[0] if channels > TILE else _block(channels)


def _block_of_bytes(w: Writer, channels: int) -> str:
    """Write the C function of a block of output channels, and return its name."""
    w.functions[f"bytes_{channels}"] = (
        f"APART bytes_{channels}(const word *in, int planes, int plane, int rows, int row, const word *weights,\n"
        "              const word *bias, const float *factors, const bytes *b, int positions, float *out, int pitch,\n"
        f"              int count) {{\n    block_of_bytes({channels}, in, planes, plane, rows, row, weights, bias, factors, b, "  # noqa: E501
        "positions, out, pitch,\n                   count);\n}\n"
    )
    return f"bytes_{channels}"


def _wide_bytes(layer: Layer) -> tuple[int, str, int]:
    """Lay out the algorithm whose vectors go over positions; return its cost, function and room."""
    fours, planes = layer.fours, layer.planes(layer.fours)
    strips = layer.in_strips(planes * layer.out_width, layer.span if layer.shared else 0)
    read, some = layer.read(layer.strip), _at_once(layer)
    columns = planes * (read if layer.shared else layer.strip) * layer.out_width
    room = _room(fours * read * layer.padded_width + 16) + _room(columns + 16)
    if layer.pooled:
        room += 8 * _room(layer.strip * layer.out_width) + 2 * _room(layer.out_width + 16)
    vectors = strips * -(-layer.strip * layer.out_width // 16)
    channels = layer.groups * -(-layer.out_channels // layer.groups // some) * some
    return vectors * (channels * _products(layer) + layer.out_channels * FINISHING), "wide_bytes", room


def _tall_bytes(layer: Layer) -> tuple[int, str, int]:
    """Lay out the algorithm whose vectors go over output channels; return its cost, function and room."""
    fours, planes = layer.fours, layer.planes(layer.fours)
    read, positions = layer.read(layer.out_height), layer.out_height * layer.out_width
    columns = planes * (read if layer.shared else layer.out_height) * layer.out_width
    room = _room(TILE * positions + 16) + _room(fours * read * layer.padded_width + 16) + _room(columns + 16)
    vectors = layer.groups * -(-layer.out_channels // layer.groups // 16) * positions
    return vectors * (_products(layer) + FINISHING + TURNING), "tall_bytes", room


def _products(layer: Layer) -> int:
    """Return the vector products of a sum: four channels are multiplied at once."""
    return -(-layer.channels // layer.groups // 4) * layer.kernel_height * layer.kernel_width


def _by_tile(values: Tensor, groups: int) -> Tensor:
    """Fill the output channels of every group up to whole tiles."""
    grouped = values.unflatten(0, (groups, -1))
    missing = grouped.new_zeros(groups, -grouped.shape[1] % TILE, *values.shape[1:])
    return torch.cat([grouped, missing], 1).unflatten(1, (-1, TILE))


def _words(part: Tensor, groups: int) -> np.ndarray:
    """Lay int8 weights out: group, tile, four channels, column and row, output channel; four channels in a word."""
    part = torch.cat([part, part.new_zeros(len(part), -part.shape[1] % 4, *part.shape[2:])], 1).unflatten(1, (-1, 4))
    laid = _by_tile(part, groups).movedim((2, 4), (-2, -1)).long().numpy() & 255
    return (laid << np.arange(0, 32, 8)).sum(-1).astype(np.uint32).view(np.int32)
