"""Codecs between JSON or binary bodies and tensors: one for each wire format."""
