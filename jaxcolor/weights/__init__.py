"""Where trained parameters live: run directories, exported models, published weights files and checkpoints of others.

Imports `tasks` and the rooms below it. `migration` is the only module that knows the configs of earlier versions.
"""
