"""Stands for any other package that carries kvproto: it registers metapb.proto in protobuf's default pool.

Its metapb.Store is not ours: the address is field 7 here.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

FILE = FileDescriptorProto(name="metapb.proto", package="metapb", syntax="proto3")
FILE.enum_type.add(name="StoreState").value.add(name="Up", number=0)
FILE.message_type.add(name="Store").field.add(
    name="address", number=7, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
)

POOL = descriptor_pool.Default()
POOL.AddSerializedFile(FILE.SerializeToString())
Store = message_factory.GetMessageClass(POOL.FindMessageTypeByName("metapb.Store"))
