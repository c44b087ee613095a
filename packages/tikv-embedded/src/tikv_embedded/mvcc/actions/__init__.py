"""What the transactional requests do: `(TxnContext, kvrpcpb request) -> (kvrpcpb response, WriteBatch or None)`."""
