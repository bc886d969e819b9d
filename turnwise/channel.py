"""Calls between the server and its engine or learner process, over one stream socket.

Messages are length-prefixed msgpack: a 4-byte big-endian length, then one map. Arrays travel as
raw bytes with dtype and shape, nouns as their fields, errors by name; nothing is pickled.

    client -> {"id": 7, "call": "generate", "args": {...}}
    server -> {"id": 7, "item": ...}           any number of times for a stream
    server -> {"id": 7, "done": result}        or  {"id": 7, "error": [name, text, extra]}
    client -> {"id": 7, "cancel": true}

A process that serves a channel ends when its parent's end closes.
"""
