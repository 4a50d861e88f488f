"""Colors photos with a trained network: in memory (`Colorizer`), or files and whole folders (`colorize`).

May import `weights`, `prepare`, `runtime` and the rooms below them; not `evaluation`, `jaxcolor.train` or `benchmark`.
"""
