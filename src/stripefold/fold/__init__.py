"""Rules by exact layer type, and the folding, fusing and verifying that stand on them."""

# Provisional until the room is renamed: `stripefold.fold` is both this package and the function.
import sys  # noqa: E402
import types  # noqa: E402


class _Room(types.ModuleType):
    def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        from stripefold.fold.fold import fold

        return fold(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
