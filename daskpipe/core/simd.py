"""SIMD vectors in Numba: of eight numbers, or of sixteen that interleave the eight of two neighbours.

Numba relies on LLVM to vectorise loops, and LLVM does not vectorise inner loops as short as those of SOAP. Here each
operation is one or two LLVM instructions, which become those of the processor (AVX-512, AVX2, NEON). Arrays are
one-dimensional and contiguous, indices are not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from daskpipe.core.accelerate import kernel

WIDTH = 8
"""Numbers in a vector."""

INT32 = ir.IntType(32)


class SimdVector(types.Type):
    """Numba type of a vector of 8 or 16 numbers of one dtype."""

    def __init__(self, dtype: Any, width: int = WIDTH) -> None:
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"SimdVector({dtype}, {width})")


@register_model(SimdVector)
class _SimdVectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: SimdVector) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(element, lanes.width))


def _item_address(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """Return the address of item ``args[1]`` of array ``args[0]``; `kinds` are their types."""
    array = context.make_array(kinds[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _read_vector(context: Any, builder: Any, kinds: Any, args: Any, width: int) -> Any:
    vector = ir.VectorType(context.get_value_type(kinds[0].dtype), width)
    address = builder.bitcast(_item_address(context, builder, kinds, args), vector.as_pointer())
    return builder.load(address, align=kinds[0].dtype.bitwidth // 8)


def _shuffle_items(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, mask)


def _make_reader(width: int, lanes: Sequence[int] | None, result: int, doc: str) -> Any:
    """Return an intrinsic that reads `width` items from an array and arranges them by `lanes`."""

    def read_items(typingcontext: Any, array: Any, start: Any) -> Any:
        def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            items = _read_vector(context, builder, signature.args, args, width)
            return items if lanes is None else _shuffle_items(builder, items, items, lanes)

        return SimdVector(array.dtype, result)(array, types.intp), generate_code

    read_items.__doc__ = doc
    return intrinsic(read_items)


load = _make_reader(WIDTH, None, WIDTH, "Read eight items from `start` on.")
load_two = _make_reader(2 * WIDTH, None, 2 * WIDTH, "Read sixteen items from `start` on.")
broadcast = _make_reader(1, [0] * WIDTH, WIDTH, "Read one item, eight times.")
broadcast_wide = _make_reader(1, [0] * 2 * WIDTH, 2 * WIDTH, "Read one item, sixteen times.")
broadcast_two = _make_reader(2, [0, 1] * WIDTH, 2 * WIDTH, "Read two items in turn, eight times each.")


@intrinsic
def store(typingcontext: Any, array: Any, start: Any, lanes: Any) -> Any:
    """Write a vector to an array from `start` on."""

    def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = context.get_value_type(signature.args[2])
        address = builder.bitcast(_item_address(context, builder, signature.args, args), vector.as_pointer())
        builder.store(args[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate_code


@intrinsic
def zeros(typingcontext: Any, array: Any) -> Any:
    """Return eight zeros of the dtype of `array`."""

    def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.get_null_value(context.get_value_type(signature.return_type))

    return SimdVector(array.dtype)(array), generate_code


def _make_operator(code: Callable[..., Any], n_operands: int, doc: str) -> Any:
    """Return an intrinsic on vectors of one type."""

    def call_binary(typingcontext: Any, a: Any, b: Any) -> Any:
        return a(a, a), lambda context, builder, signature, args: code(builder, signature, *args)

    def call_ternary(typingcontext: Any, a: Any, b: Any, c: Any) -> Any:
        return a(a, a, a), lambda context, builder, signature, args: code(builder, signature, *args)

    operation = call_ternary if n_operands == 3 else call_binary
    operation.__doc__ = doc
    return intrinsic(operation)


def _multiply_add(builder: Any, signature: Any, a: Any, b: Any, c: Any) -> Any:
    lanes = signature.return_type
    name = f"llvm.fmuladd.v{lanes.width}f{lanes.dtype.bitwidth}"
    operation = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(operation, [a, b, c])


add = _make_operator(lambda builder, signature, a, b: builder.fadd(a, b), 2, "``a + b``.")
sub = _make_operator(lambda builder, signature, a, b: builder.fsub(a, b), 2, "``a - b``.")
mul = _make_operator(lambda builder, signature, a, b: builder.fmul(a, b), 2, "``a * b``.")
fma = _make_operator(_multiply_add, 3, "``a * b + c``, rounded once where the processor can.")

LOW = [lane for pair in zip(range(WIDTH), range(2 * WIDTH, 3 * WIDTH), strict=True) for lane in pair]
HIGH = [lane + WIDTH for lane in LOW]

interleave_low = _make_operator(
    lambda builder, signature, a, b: _shuffle_items(builder, a, b, LOW), 2, "First eights of two sixteens, in turn."
)
interleave_high = _make_operator(
    lambda builder, signature, a, b: _shuffle_items(builder, a, b, HIGH), 2, "Second eights of two sixteens, in turn."
)


@intrinsic
def add_neighbours(typingcontext: Any, lanes: Any) -> Any:
    """Add neighbouring numbers: sixteen to eight."""

    def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        even, odd = (_shuffle_items(builder, args[0], args[0], range(first, 2 * WIDTH, 2)) for first in (0, 1))
        return builder.fadd(even, odd)

    return SimdVector(lanes.dtype)(lanes), generate_code


def _broadcast_value(builder: Any, value: Any, width: int = WIDTH) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, width), ir.Undefined), value, INT32(0))
    return _shuffle_items(builder, one, one, [0] * width)


def _append_masked(context: Any, builder: Any, kind: Any, array: Any, end: Any, items: Any, mask: Any) -> Any:
    """Write the items whose mask is set one after another to an array from `end` on; return the new end."""
    target = context.make_array(kind)(context, builder, array)
    signature = ir.FunctionType(ir.VoidType(), [items.type, INT32.as_pointer(), mask.type])
    compress = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.compressstore.v{WIDTH}i32")
    builder.call(compress, [items, builder.gep(target.data, [end]), mask])
    return builder.add(end, builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(WIDTH))), end.type))


@intrinsic
def append_where_equal(typingcontext: Any, keys: Any, items: Any, first: Any, key: Any, out: Any, end: Any) -> Any:
    """Append to `out` the items, of the eight from `first` on, whose key is `key`; return the new `end`. All int32."""

    def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = [_read_vector(context, builder, signature.args[k:], [args[k], args[2]], WIDTH) for k in (0, 1)]
        mask = builder.icmp_signed("==", places[0], _broadcast_value(builder, builder.trunc(args[3], INT32)))
        return _append_masked(context, builder, signature.args[4], args[4], args[5], places[1], mask)

    whole = types.intp
    return whole(keys, items, whole, whole, out, whole), generate_code


@intrinsic
def append_where_within(
    typingcontext: Any, points: Any, first: Any, x: Any, y: Any, z: Any, square: Any, out: Any, end: Any
) -> Any:
    """Append to `out` (int32) the numbers of the points, of eight, that lie within a distance of a place.

    `points` is (xyz, point), float64; the eight from `first` on are looked at. `square` is the squared distance.
    Returns the new `end` of `out`.
    """

    def generate_code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.DoubleType(), WIDTH)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        n_points = builder.extract_value(array.shape, 1)
        total = ir.Constant(vector, None)
        for axis, place in enumerate(args[2:5]):
            item = builder.add(builder.mul(n_points, ir.Constant(n_points.type, axis)), args[1])
            address = builder.bitcast(builder.gep(array.data, [item]), vector.as_pointer())
            difference = builder.fsub(builder.load(address, align=8), _broadcast_value(builder, place))
            total = builder.fadd(total, builder.fmul(difference, difference))
        mask = builder.fcmp_ordered("<=", total, _broadcast_value(builder, args[5]))
        first_number = _broadcast_value(builder, builder.trunc(args[1], INT32))
        numbers = builder.add(first_number, ir.Constant(first_number.type, list(range(WIDTH))))
        return _append_masked(context, builder, signature.args[6], args[6], args[7], numbers, mask)

    real, whole = types.float64, types.intp
    return whole(points, whole, real, real, real, real, out, whole), generate_code


@kernel
def aligned_zeros(size: int, like: np.ndarray) -> np.ndarray:
    """Return zeros of the dtype of `like` that start on a cache line, so that no vector lies on two."""
    line = 64 // like.itemsize
    array = np.zeros(size + line, like.dtype)
    skip = (-(array.ctypes.data // like.itemsize)) % line
    return array[skip : skip + size]
