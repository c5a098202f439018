"""Triton's interpreter, without the work that it repeats: a third of the time of a kernel that calls device functions.

It replaces the functions of triton.language by its own at each launch, and again at each call of a device function
inside it (tl.sum is one), though they are replaced already: here once a launch. It makes the type of each result anew:
here types of the same elements and shape share their fields. It makes a table of NumPy's dtypes at each look-up: here
once a type. It casts and broadcasts the operands of every operation: here those that need it. It takes floats of 8 and
16 bits apart to convert them: here they are looked up in a table of all, made by itself. It reduces by a function of
ours one element after the other: here a slice after the other. And it computes sums and products of integers again in
64 bits, for an assertion that it has turned off: here once.
"""

import dataclasses
import functools

import numpy
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def quicken() -> None:
    """Have the interpreter of this process leave out what it has done before."""
    patch_once_a_launch()
    share_types()
    compare_types_by_name()
    keep_operands_that_agree()
    leave_out_overflow()
    look_up_conversions()
    reduce_slices()
    interpreter._get_np_dtype = once_a_type(interpreter._get_np_dtype)


def patch_once_a_launch() -> None:
    """Leave out what has been replaced since the launch began."""
    patch, launch, done = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    @functools.cache
    def modules(fn) -> frozenset[str]:
        """Those whose functions `fn` uses: what _patch_lang() would replace."""
        return frozenset(value.__name__ for value in fn.__globals__.values() if value is tl or value is tl.core)

    def patch_new(fn):
        if modules(fn) in done:
            return interpreter._LangPatchScope()  # nothing to restore
        done.add(modules(fn))
        return patch(fn)

    def launch_anew(self, *arguments, **named):
        done.clear()
        return launch(self, *arguments, **named)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_new, launch_anew


def share_types() -> None:
    """Give a block type, and the tensors of a type, the fields of the first of its elements and shape."""
    fields, shapes, same_shape = {}, {}, {}
    type_init, tensor_init = tl.block_type.__init__, tl.tensor.__init__

    def share_fields(self, element_ty, shape):
        sizes = tuple(size if type(size) is int else tl.core._unwrap_if_constexpr(size) for size in shape)
        key = (type(element_ty), element_ty.name, sizes)
        if key not in fields:
            type_init(self, element_ty, shape)
            self.shape = same_shape.setdefault(sizes, self.shape)
            fields[key] = dict(self.__dict__)
        self.__dict__.update(fields[key])

    def share_shape(self, handle, type):
        known = shapes.get(type.name)
        if known is None:
            tensor_init(self, handle, type)
            shapes[type.name] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known

    tl.block_type.__init__, tl.tensor.__init__ = share_fields, share_shape


def compare_types_by_name() -> None:
    """Compare scalar types as triton.language does, which looks for constexprs in tuples and lists first."""

    def is_same(self, other) -> bool:
        if type(other) is tl.constexpr:
            other = other.value
        return isinstance(other, tl.dtype) and self.name == other.name

    tl.dtype.__eq__ = is_same


def keep_operands_that_agree() -> None:
    """Return a tensor of the right type from a cast as it is, and two of one shape from a broadcast."""
    cast, broadcast = TritonSemantic.cast, TritonSemantic.broadcast_impl_value

    def cast_others(self, input, dst_ty, fp_downcast_rounding=None):
        if input.dtype.name == dst_ty.scalar.name:
            return input
        return cast(self, input, dst_ty, fp_downcast_rounding)

    def broadcast_others(self, lhs, rhs):
        left, right = lhs.type, rhs.type
        if left.is_block():
            agree = right.is_block() and left.shape is right.shape
        else:
            agree = not right.is_block()
        return (lhs, rhs) if agree else broadcast(self, lhs, rhs)

    TritonSemantic.cast, TritonSemantic.broadcast_impl_value = cast_others, broadcast_others


def leave_out_overflow() -> None:
    """Add and multiply integers once; the second time, in 64 bits, is for an assertion that is off."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def look_up_conversions() -> None:
    """Convert floats of 8 and 16 bits by a table of all that there are, made by the interpreter itself."""
    convert = interpreter._convert_float

    @functools.cache
    def converted(input_dtype, output_dtype, rounding_mode):
        bits = input_dtype.primitive_bitwidth
        every = numpy.arange(1 << bits, dtype=f"uint{bits}")
        return convert(every, input_dtype, output_dtype, rounding_mode)

    def look_up(input, input_dtype, output_dtype, rounding_mode):
        bits = input_dtype.primitive_bitwidth
        if bits > 16:
            return convert(input, input_dtype, output_dtype, rounding_mode)
        return converted(input_dtype, output_dtype, rounding_mode)[input.view(f"uint{bits}")]

    interpreter._convert_float = look_up


def reduce_slices() -> None:
    """Combine whole slices of a tensor along the axis of a tl.reduce(), in the order of its elements."""
    reduce = interpreter.ReduceOps.generic_reduce

    def reduce_by_slice(self, input):
        if self.axis is None or self.keep_dims or input[0].handle.data.ndim < 2:
            return reduce(self, input)
        slices = zip(*(numpy.moveaxis(x.handle.data, self.axis, 0) for x in input), strict=True)
        tensors = (tuple(map(self.to_tensor, each, (x.dtype for x in input))) for each in slices)
        total = next(tensors)
        for each in tensors:
            total = self.combine_fn.fn(*total, *each)
            total = total if isinstance(total, tuple) else (total,)
        return list(total)

    interpreter.ReduceOps.generic_reduce = reduce_by_slice


def once_a_type(find):
    """Cache a function of a type of triton.language by the type's name; types of blocks have no hash."""
    found = {}

    def cached(type):
        if type.name not in found:
            found[type.name] = find(type)
        return found[type.name]

    return cached
