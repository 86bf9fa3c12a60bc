"""The contract between client, retriever and verifier: messages, errors and the values that cross the wire.

Imports nothing of the three. `laser_protocol.tree` alone needs numpy, `laser_protocol.serving` alone the server extras;
neither is imported here, so that a client needs only grpcio and protobuf.
"""
