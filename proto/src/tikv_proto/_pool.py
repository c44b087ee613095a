"""The descriptor pool of this package, and the message classes made from it.

protobuf's default pool admits each file and symbol once per process, so two packages that carry kvproto cannot share it.
This pool is private: the descriptor set is plain data, the classes come from `message_factory` when first asked for.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message


def _load() -> tuple[descriptor_pool.DescriptorPool, tuple[str, ...]]:
    pool = descriptor_pool.DescriptorPool()
    descriptors = FileDescriptorSet.FromString(files("tikv_proto").joinpath("kvproto.binpb").read_bytes())
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
            raise AttributeError(name) from None


def message_class(descriptor: Descriptor) -> type[Message]:
    """Return the class of a message, named so that its instances pickle."""
    cls = message_factory.GetMessageClass(descriptor)
    if cls not in copyreg.dispatch_table:
        outermost = descriptor
        while outermost.containing_type is not None:
            outermost = outermost.containing_type
        _adopt(message_factory.GetMessageClass(outermost), outermost, "tikv_proto." + descriptor.file.name.removesuffix(".proto"))
    return cls


def _adopt(cls: type[Message], descriptor: Descriptor, module: str) -> None:
    cls.__module__ = module
    # protobuf pickles nested messages by a look-up in the default pool, where ours are not.
    copyreg.pickle(cls, _reduce)
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            _adopt(getattr(cls, nested.name), nested, module)


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
            return EnumType(file.enum_types_by_name[name])
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
