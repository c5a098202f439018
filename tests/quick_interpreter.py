"""Triton's interpreter, without the work that it repeats: half the time of a kernel that calls device functions.

It replaces the functions of triton.language by its own at each launch, and again at each call of a device function
inside it (tl.sum is one), though they are replaced already. Here that happens once a launch.
"""

import functools

import triton.language as tl
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Have the interpreter of this process leave out what has been replaced since the launch began."""
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
