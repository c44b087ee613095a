"""The descriptor pool of this package, and the message classes made from it.

protobuf's default pool admits each file and symbol once per process, so two packages that carry kvproto cannot share
it. This pool is private: the descriptor set is plain data, and `message_factory` makes the classes from it.
"""

from __future__ import annotations

import copyreg
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message


def _load() -> tuple[descriptor_pool.DescriptorPool, tuple[str, ...]]:
    data = pkgutil.get_data("tikv_proto", "kvproto.binpb")
    assert data is not None, "every import system that finds this module also reads its data"
    pool = descriptor_pool.DescriptorPool()
    descriptors = FileDescriptorSet.FromString(data)
    for file in descriptors.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool, tuple(file.name for file in descriptors.file)


POOL, FILES = _load()
"""The private pool, and the names of its files in order of dependency."""


class EnumType:
    """A protobuf enum: names and numbers, both ways.

    Has the methods of protobuf's own enum wrapper, whose module is internal to protobuf.
    """

    def __init__(self, descriptor: EnumDescriptor) -> None:
        self.DESCRIPTOR = descriptor

    def Name(self, number: int) -> str:
        """Return the name of `number`; ValueError when the enum has no such number."""
        value = self.DESCRIPTOR.values_by_number.get(number)
        if value is None:
            raise ValueError(f"enum {self.DESCRIPTOR.full_name} has no number {number!r}")
        return value.name

    def Value(self, name: str) -> int:
        """Return the number of `name`; ValueError when the enum has no such name."""
        value = self.DESCRIPTOR.values_by_name.get(name)
        if value is None:
            raise ValueError(f"enum {self.DESCRIPTOR.full_name} has no name {name!r}")
        return value.number

    def keys(self) -> list[str]:
        """Return the names in order of declaration."""
        return [value.name for value in self.DESCRIPTOR.values]

    def values(self) -> list[int]:
        """Return the numbers in order of declaration."""
        return [value.number for value in self.DESCRIPTOR.values]

    def items(self) -> list[tuple[str, int]]:
        """Return (name, number) pairs in order of declaration."""
        return [(value.name, value.number) for value in self.DESCRIPTOR.values]

    def __getattr__(self, name: str) -> int:
        try:
            return self.Value(name)
        except ValueError:
            raise AttributeError(f"enum {self.DESCRIPTOR.full_name} has no name {name!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.keys()]

    def __repr__(self) -> str:
        return f"<enum {self.DESCRIPTOR.full_name}>"

    def __reduce__(self) -> tuple[Callable[[str], EnumType], tuple[str]]:
        return enum_type, (self.DESCRIPTOR.full_name,)


@cache
def enum_type(full_name: str) -> EnumType:
    """Return the one `EnumType` of an enum that is declared outside messages."""
    return EnumType(POOL.FindEnumTypeByName(full_name))


_classes: dict[str, type[Message]] = {}
# Full name to class. protobuf itself forgets a class, and what was set on it, when nobody else holds it.


def message_class(descriptor: Descriptor) -> type[Message]:
    """Return the class of a message, which knows its module and whose instances pickle."""
    _adopt_file(descriptor.file.name)
    return _classes[descriptor.full_name]


@cache
def _adopt_file(name: str) -> None:
    """Adopt all messages of a file and its imports: whatever a message can contain is found among them."""
    file: FileDescriptor = POOL.FindFileByName(name)
    for dependency in file.dependencies:
        _adopt_file(dependency.name)
    for descriptor in file.message_types_by_name.values():
        _adopt(descriptor, "tikv_proto." + name.removesuffix(".proto"))


def _adopt(descriptor: Descriptor, module: str) -> type[Message]:
    cls = _classes[descriptor.full_name] = message_factory.GetMessageClass(descriptor)
    cls.__module__ = module
    cls.__qualname__ = descriptor.full_name.removeprefix(descriptor.file.package + ".")
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            nested_cls = _adopt(nested, module)
            # protobuf pickles nested messages by a look-up in the default pool, where ours are not.
            copyreg.pickle(nested_cls, _reduce)
            # In pure-Python protobuf only generated code puts nested classes into their class.
            setattr(cls, nested.name, nested_cls)
    return cls


def _reduce(message: Message) -> tuple[Callable[[str, bytes], Message], tuple[str, bytes]]:
    return _restore, (message.DESCRIPTOR.full_name, message.SerializePartialToString())


def _restore(full_name: str, data: bytes) -> Message:
    return message_class(POOL.FindMessageTypeByName(full_name)).FromString(data)


def members(file_name: str, module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for the module that stands for one .proto file."""
    file: FileDescriptor = POOL.FindFileByName(file_name)

    def find(name: str) -> Any:
        if name in file.message_types_by_name:
            return message_class(file.message_types_by_name[name])
        if name in file.enum_types_by_name:
            return enum_type(file.enum_types_by_name[name].full_name)
        for enum in file.enum_types_by_name.values():
            if name in enum.values_by_name:
                return enum.values_by_name[name].number
        if name == "DESCRIPTOR":
            return file
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    def module_getattr(name: str) -> Any:
        value = find(name)
        # Next time the module answers by itself.
        setattr(sys.modules[module], name, value)
        return value

    def names() -> Iterator[str]:
        yield from file.message_types_by_name
        for enum in file.enum_types_by_name.values():
            yield enum.name
            yield from enum.values_by_name
        yield "DESCRIPTOR"

    return module_getattr, lambda: sorted(names())
