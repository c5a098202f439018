"""Triton's interpreter, without the work that it repeats: a third of the time of a kernel that calls device functions.

It replaces the functions of triton.language by its own at each launch, and again at each call of a device function
inside it (tl.sum is one), though they are replaced already: here once a launch. It makes the type of each result anew:
here types of the same elements and shape share their fields. It makes a table of NumPy's dtypes at each look-up: here
once a type.
"""

import functools

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Have the interpreter of this process leave out what it has done before."""
    patch_once_a_launch()
    share_types()
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
    fields, shapes = {}, {}
    type_init, tensor_init = tl.block_type.__init__, tl.tensor.__init__

    def share_fields(self, element_ty, shape):
        sizes = tuple(tl.core._unwrap_if_constexpr(size) for size in shape)
        key = (type(element_ty), element_ty.name, sizes)
        if key not in fields:
            type_init(self, element_ty, shape)
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


def once_a_type(find):
    """Cache a function of a type of triton.language by the type's name; types of blocks have no hash."""
    found = {}

    def cached(type):
        if type.name not in found:
            found[type.name] = find(type)
        return found[type.name]

    return cached
