"""How the kit's functions get into MLflow: by name, and only where the name is known."""

import contextlib
import functools
import sys


class UnknownMlflow(RuntimeError):
    """MLflow is not the one that this package was written for: the server must not run."""


@contextlib.contextmanager
def without(*names):
    """Let what is imported meanwhile find no modules of these NAMES; what imports them later does find them."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def replace(owner, name, make):
    """Put make(original) in the place of OWNER's attribute NAME.  Raises UnknownMlflow where there is none."""
    original = getattr(owner, name, None)
    if original is None:
        raise UnknownMlflow(f"MLflow has no {getattr(owner, '__name__', owner)}.{name}")
    replacement = make(original)
    if callable(original) and not isinstance(original, type):
        functools.update_wrapper(replacement, original)
    setattr(owner, name, replacement)


def replace_in(tables, old, new):
    """Put NEW in the place of OLD in all of the dictionaries TABLES.  Raises UnknownMlflow where it is in none."""
    places = [(table, key) for table in tables for key, value in table.items() if value is old]
    if not places:
        raise UnknownMlflow(f"MLflow does not use {getattr(old, '__name__', old)} any more")
    for table, key in places:
        table[key] = new
