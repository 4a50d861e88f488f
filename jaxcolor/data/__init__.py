"""Shard sets -> batches: records, the order of the photos, augmentation, the input pipelines of host and device.

Also holds the bundled photos (`photos/`). Imports only `color`, `config`, `errors` and `files`, and knows nothing of
networks or commands.
"""
