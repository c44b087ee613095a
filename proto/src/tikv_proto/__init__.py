"""The wire of TiKV and PD: one module per kvproto package, and `services`, the table of RPCs.

`tikv_proto.kvrpcpb.RawGetRequest` is a protobuf message class like any other. The descriptors live in a pool of their
own, so this package can be imported next to any other that carries kvproto.
"""
