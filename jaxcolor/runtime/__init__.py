"""What a program needs of the machine: devices and the mapping of steps over them, processes, checkpoints, logs, caches.

Imports only `errors`, `files` and `config`, and knows nothing of color. `checkpoint` is the only module that uses Orbax.
"""
