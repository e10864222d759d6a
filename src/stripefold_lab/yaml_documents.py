"""YAML that others wrote: bounded in size and depth, every key once, small with its aliases written out.

Apart from ``documents``, since the library itself does without PyYAML.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from stripefold.documents import DEPTH, MIB, DocumentError, first_twice, read_text, shown, too_deep
from stripefold.errors import one_line

YAML_LIMIT = MIB
NODES = 100_000
"""Values of a YAML document with every alias written out: ten lines of aliases of aliases stand for billions."""
LARGEST = 2**64
"""A whole number of YAML from here on is a mistake; Python could not even print the largest ones."""


def read_yaml(path: str | os.PathLike[str], *, limit: int = YAML_LIMIT) -> Any:
    """The content of a YAML file; see ``read_text`` and ``parse_yaml``."""
    return parse_yaml(read_text(path, limit=limit))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, plain values only.

    Aliases and merge keys are allowed as long as the document stays small with all of them written out.

    Raises:
        DocumentError: If it is no YAML, larger than ``YAML_LIMIT``, deeper than ``DEPTH``, has more than ``NODES``
            values, a key twice, or a number of more than 64 bits.

    >>> parse_yaml("milestones: [81, 122]")
    {'milestones': [81, 122]}
    """
    if len(text) > YAML_LIMIT:
        raise DocumentError(f"it is larger than {YAML_LIMIT // MIB} MiB")
    loader: Any = None
    try:
        loader = BoundedLoader(text)
        return loader.get_single_data()
    except DocumentError:
        raise
    except yaml.YAMLError as error:
        raise DocumentError(f"it is no valid YAML: {one_line(error):.500}") from error
    except Exception as error:  # dates that do not exist, numbers of a thousand digits: whatever a constructor raises
        raise DocumentError(f"it is no valid YAML: {type(error).__name__}: {one_line(error):.500}") from error
    finally:
        if loader is not None:
            loader.dispose()


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which composes nothing deep, nothing large with its aliases written out, no key twice.

    Args:
        text: A YAML text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.level = 0
        self.deepest = 0
        self.written_out = 0
        self.sizes: dict[int, tuple[int, int]] = {}  # values written out, and levels, of each node that is complete

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value, counted; an alias counts as much as what it stands for."""
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            # An alias inside of what it stands for has no size yet.
            if id(node) not in self.sizes:
                raise DocumentError("an alias in it refers to a value that contains the alias")
            self._count(*self.sizes[id(node)])
            return node
        written_out, deepest = self.written_out, self.deepest
        self.deepest = self.level
        self._count(1, 1 if self.check_event(yaml.ScalarEvent) else 2)
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        self.sizes[id(node)] = self.written_out - written_out, self.deepest - self.level
        self.deepest = max(deepest, self.deepest)
        return node

    def _count(self, size: int, levels: int) -> None:
        self.written_out += size
        self.deepest = max(self.deepest, self.level + levels)
        if self.written_out > NODES:
            raise DocumentError(f"it holds more than {NODES} values, with its aliases written out")
        if self.deepest > DEPTH + 1:
            raise DocumentError(too_deep())

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping without a key twice; what a merge key brings may be overridden."""
        node = super().compose_mapping_node(anchor)
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        keys = [self.construct_object(key) for key in scalars if key.tag != "tag:yaml.org,2002:merge"]
        if len(set(keys)) < len(keys):
            twice = shown(first_twice(keys))
            raise DocumentError(f"the key {twice} stands in it twice (line {node.start_mark.line + 1} on)")
        return node

    def construct_number(self, node: Any) -> int:
        """A whole number of at most 64 bits: Python could not even print the largest ones."""
        value: int = self.construct_yaml_int(node)
        if abs(value) >= LARGEST:
            raise DocumentError(f"a number in line {node.start_mark.line + 1} has more than 64 bits")
        return value


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_number)
